//! Today's date in the words of `strftime`, for templates that write it. UTC, proleptic Gregorian.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, split into the fields of a calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    day_of_year: i64,
    second_of_day: i64,
}

impl Moment {
    pub(super) fn now() -> Moment {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Moment::from_unix(i64::try_from(seconds).unwrap_or(0))
    }

    pub(super) fn from_unix(seconds: i64) -> Moment {
        let days = seconds.div_euclid(86_400);
        // Days are counted from 1 March of year 0, so that the leap day ends a year; an era is 400 years.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let day = day_from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 2 } else { month_from_march - 10 };
        let year = era * 400 + year_of_era + i64::from(month < 2);
        let leap = i64::from((year % 4 == 0 && year % 100 != 0) || year % 400 == 0);
        let day_of_year = if month < 2 { day_from_march - 305 } else { day_from_march + 60 + leap };
        Moment {
            year,
            month: usize::try_from(month).unwrap_or(0) % 12,
            day,
            weekday: usize::try_from((days + 4).rem_euclid(7)).unwrap_or(0),
            day_of_year,
            second_of_day: seconds.rem_euclid(86_400),
        }
    }

    /// Formats like `strftime`; a directive it does not know stays as it is written.
    pub(super) fn format(&self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = chars.next();
            let bare = directive == Some('-');
            if bare {
                directive = chars.next();
            }
            match directive.map(|letter| (letter, self.field(letter))) {
                Some((_, Some(text))) if bare && text.len() > 1 => {
                    let trimmed = text.trim_start_matches('0');
                    out.push_str(if trimmed.is_empty() { "0" } else { trimmed });
                }
                Some((_, Some(text))) => out.push_str(&text),
                Some((letter, None)) => out.extend(['%', letter]),
                None => out.push('%'),
            }
        }
        out
    }

    fn field(&self, letter: char) -> Option<String> {
        let (hour, minute, second) =
            (self.second_of_day / 3_600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let month = MONTHS[self.month];
        let weekday = DAYS[self.weekday];
        Some(match letter {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year.rem_euclid(100)),
            'm' => format!("{:02}", self.month + 1),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month + 1, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Moment;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let moment = Moment::from_unix(1_709_211_845); // Thursday, the leap day of 2024
        assert_eq!(moment.format("%A %d %B %Y, %H:%M:%S, day %j"), "Thursday 29 February 2024, 13:04:05, day 060");
        assert_eq!(moment.format("%-d %b %y %I %p %-I %a 100%% %Q %"), "29 Feb 24 01 PM 1 Thu 100% %Q %");
        let moment = Moment::from_unix(-1);
        assert_eq!(moment.format("%F %T %a %j"), "1969-12-31 23:59:59 Wed 365");
        let moment = Moment::from_unix(1_735_689_600); // New Year's Day of 2025, after a leap year
        assert_eq!(moment.format("%F %a %j"), "2025-01-01 Wed 001");
        let moment = Moment::from_unix(1_735_603_200); // the day before, day 366
        assert_eq!(moment.format("%F %a %j"), "2024-12-31 Tue 366");
    }
}
