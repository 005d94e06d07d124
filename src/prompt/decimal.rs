//! Numbers as they are written: 19.99 is a multiple of 0.01, though not of the doubles that stand for them, and
//! 9007199254740993 is not the double next to it. Pure.

use std::cmp::Ordering;

use serde_json::Number;

/// A number in decimal digits: `digits` × 10^`exponent`, with no zeros behind the last digit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decimal {
    negative: bool,
    /// Below 2^64, as JSON's numbers are here integers of 64 bits or doubles, whose digits are at most 17.
    digits: u128,
    exponent: i32,
}

impl Decimal {
    /// A number of JSON.
    pub(super) fn of(number: &Number) -> Option<Decimal> {
        Decimal::parse(&number.to_string())
    }

    /// What a number's text says; `None` where it has more digits than a number has here.
    pub(super) fn parse(written: &str) -> Option<Decimal> {
        let (mantissa, exponent) = written.split_once(['e', 'E']).unwrap_or((written, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{}{fraction}", whole.trim_start_matches('-'));
        let digits = all.trim_end_matches('0');
        let shift = i32::try_from(all.len() - digits.len()).ok()?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let exponent = exponent.parse::<i32>().ok()?.checked_add(shift)?;
        match digits.trim_start_matches('0') {
            "" => Some(Decimal { negative: false, digits: 0, exponent: 0 }),
            digits => {
                let digits = digits.parse::<u128>().ok().filter(|digits| *digits <= u128::from(u64::MAX))?;
                Some(Decimal { negative: whole.starts_with('-'), digits, exponent })
            }
        }
    }

    /// Whether it is a whole multiple of a step. Nothing is a multiple of 0.
    pub(super) fn is_multiple(&self, step: &Decimal) -> bool {
        if step.digits == 0 {
            return false;
        }
        let shift = self.exponent.abs_diff(step.exponent);
        if self.exponent >= step.exponent {
            // Both factors are below the step's digits, which are below 2^64.
            let rest = self.digits % step.digits * power_of_ten(shift, step.digits);
            return rest.is_multiple_of(step.digits);
        }
        // A step that is too large for this is larger than any number's digits; of those only 0 is a multiple.
        let step = 10u128.checked_pow(shift).and_then(|power| step.digits.checked_mul(power));
        step.map_or(self.digits == 0, |step| self.digits.is_multiple_of(step))
    }

    /// The number without its sign.
    pub(super) fn magnitude(&self) -> Decimal {
        Decimal { negative: false, ..*self }
    }

    /// Compares what is left of the signs.
    fn cmp_magnitude(&self, other: &Decimal) -> Ordering {
        if self.digits == 0 || other.digits == 0 {
            return self.digits.cmp(&other.digits);
        }
        let order = |number: &Decimal| i64::from(number.digits.ilog10()) + i64::from(number.exponent);
        order(self).cmp(&order(other)).then_with(|| {
            // Of the same order, they differ by fewer than 20 places.
            let raised = |number: &Decimal, to: i32| number.digits * 10u128.pow(number.exponent.abs_diff(to));
            let to = self.exponent.min(other.exponent);
            raised(self, to).cmp(&raised(other, to))
        })
    }
}

impl From<u64> for Decimal {
    fn from(count: u64) -> Decimal {
        let (mut digits, mut exponent) = (u128::from(count), 0);
        while digits > 0 && digits.is_multiple_of(10) {
            (digits, exponent) = (digits / 10, exponent + 1);
        }
        Decimal { negative: false, digits, exponent }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Decimal) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Decimal) -> Ordering {
        match (self.negative, other.negative) {
            (false, false) => self.cmp_magnitude(other),
            (true, true) => other.cmp_magnitude(self),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

/// Ten to a power, as a remainder of a division by at most 2^64.
fn power_of_ten(exponent: u32, modulus: u128) -> u128 {
    let (mut power, mut base, mut rest) = (1 % modulus, 10 % modulus, exponent);
    while rest > 0 {
        if rest % 2 == 1 {
            power = power * base % modulus;
        }
        base = base * base % modulus;
        rest /= 2;
    }
    power
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Decimal {
        Decimal::of(&serde_json::from_str::<Number>(text).unwrap()).unwrap()
    }

    #[test]
    fn multiples_are_counted_in_decimals() {
        for (number, step) in [
            ("19.99", "0.01"),
            ("0.3", "0.1"),
            ("-1.15", "0.05"),
            ("0", "0.1"),
            ("1e20", "1e-20"),
            ("14e20", "7e20"),
            ("18446744073709551614", "2"),
            ("2.50", "1.25"),
            ("3", "1.0"),
        ] {
            assert!(read(number).is_multiple(&read(step)), "{number} of {step}");
        }
        for (number, step) in [
            ("19.995", "0.01"),
            ("0.35", "0.1"),
            ("18446744073709551615", "2"),
            ("9007199254740993", "2"),
            ("1e-20", "1e20"),
            ("1", "0"),
            ("0", "0"),
            ("1", "0.3"),
        ] {
            assert!(!read(number).is_multiple(&read(step)), "{number} of {step}");
        }
    }

    #[test]
    fn numbers_are_compared_as_they_are_written() {
        let ascending = [
            "-1e300",
            "-18446744073709551615.0e1",
            "-9007199254740993",
            "-9007199254740992",
            "-0.5",
            "0",
            "1e-300",
            "0.1",
            "1",
            "1.5",
            "10",
            "9007199254740992",
            "9007199254740993",
            "18446744073709551615",
            "1e20",
            "1e300",
        ];
        for (at, small) in ascending.iter().enumerate() {
            for large in &ascending[at + 1..] {
                assert!(read(small) < read(large) && read(large) > read(small), "{small} {large}");
            }
        }
        for (a, b) in [("1", "1.0"), ("-0.0", "0"), ("100", "1e2"), ("0.10", "1e-1")] {
            assert_eq!(read(a), read(b));
        }
        assert_eq!(Decimal::from(1200u64), read("1.2e3"));
        assert_eq!(Decimal::from(0u64), read("0"));
    }

    proptest! {
        #[test]
        fn multiples_are_found_and_their_neighbours_are_not(
            times in 0..1_000_000u64, step in 2..1_000_000u64, places in 0..12u32,
        ) {
            let number = |digits: u64| read(&format!("{digits}e-{places}"));
            prop_assert!(number(times * step).is_multiple(&number(step)));
            prop_assert!(!number(times * step + 1).is_multiple(&number(step)));
        }

        #[test]
        fn whole_numbers_are_ordered_as_such(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(read(&a.to_string()).cmp(&read(&b.to_string())), a.cmp(&b));
        }

        #[test]
        fn doubles_come_back(number in any::<f64>().prop_filter("a number", |number| number.is_finite())) {
            prop_assert_eq!(Decimal::parse(&format!("{number}")), Decimal::parse(&format!("{number:e}")));
        }
    }
}
