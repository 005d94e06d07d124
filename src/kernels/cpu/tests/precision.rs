//! Products whose operands are rounded, to bf16 or to bytes: within their bounds of the exact ones, and bit for bit the
//! same in any company.

use super::{products::stored, *};

/// Every way that this machine has of multiplying rounded numbers, with so many threads. AMX counts where it can be
/// emulated.
pub(super) fn rounding(threads: usize) -> Vec<Cpu> {
    let mut found = Vec::new();
    for (path, precision) in
        [(Path::Avx512, Precision::Bf16), (Path::Avx512, Precision::Bytes), (Path::Amx, Precision::Bf16)]
    {
        let cpu = path.supported().then(|| Cpu::new(threads, Some(path)).unwrap().with_precision(precision));
        match cpu.filter(|cpu| cpu.precision() == precision) {
            Some(cpu) => found.push(cpu),
            None => println!("skipped: {path:?} in {}, this processor lacks it", precision.name()),
        }
    }
    found
}

/// The most that one output may be off, for operands that are rounded in `precision` (to bf16 unless that is bytes).
fn bound(precision: Precision, element: ElementType, packing: Packing, x: &[f32], w: &[f32]) -> f64 {
    let sums = 1e-6 * x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum::<f64>() * (x.len() as f64).sqrt();
    let blocks = !matches!(element, ElementType::F32 | ElementType::F16 | ElementType::Bf16);
    let max = |x: &[f32]| f64::from(x.iter().fold(0f32, |max, x| max.max(x.abs())));
    let total = |x: &[f32]| x.iter().map(|x| f64::from(x.abs())).sum::<f64>();
    let rounding: f64 = if matches!(element, ElementType::F32 | ElementType::F16) {
        0.0
    } else if precision == Precision::Bytes && blocks {
        // Half a step of each factor, times the other: and both at once.
        let part = |(x, w): (&[f32], &[f32])| {
            let (x_half, w_half) = (max(x) / 254.0, off(element, packing, w));
            x_half * total(w) + w_half * total(x) + x_half * w_half * x.len() as f64
        };
        x.chunks(256).zip(w.chunks(256)).map(part).sum()
    } else {
        // Half a unit in the last of eight bits of each factor; weights in bf16 are not rounded.
        let units = if blocks { 2.0 } else { 1.0 };
        x.iter().zip(w).map(|(x, w)| f64::from((x * w).abs())).sum::<f64>() * units / 256.0
    };
    rounding * 1.001 + sums + 1e-6
}

/// The most that a coarse byte is off by, of 256 numbers of a column.
fn off(element: ElementType, packing: Packing, w: &[f32]) -> f64 {
    let max = f64::from(w.iter().fold(0f32, |max, x| max.max(x.abs())));
    match packing {
        _ if element == ElementType::Q8_0 => max / 254.0,
        Packing::Fast => max / 254.0,
        // One and a half steps; and what is reached here by chance is a little less than what could be.
        Packing::Compact => 1.7 * max / 127.0,
    }
}

fn product(
    cpu: &Cpu,
    element: ElementType,
    packing: Packing,
    (n, k): (usize, usize),
    bytes: &[u8],
    x: &[f32],
) -> Vec<f32> {
    let packed = PackedMatrix::plain(cpu, n, k, Source { element, bytes }, packing).unwrap();
    let mut out = vec![f32::NAN; x.len() / k * n];
    cpu.matmul(x, &packed, &mut out).unwrap();
    out
}

fn check(element: ElementType, rows: usize, n: usize, k: usize, numbers: &mut Numbers) {
    let bytes = stored(element, n * k, numbers);
    let mut values = vec![0.0; n * k];
    dequantise(element, &bytes, &mut values).unwrap();
    let x = numbers.vector(rows * k);
    for (cpu, packing) in rounding(2).iter().flat_map(|cpu| [(cpu, Packing::Fast), (cpu, Packing::Compact)]) {
        let name = format!("{:?} in {} {packing:?}", cpu.path(), cpu.precision().name());
        let all = product(cpu, element, packing, (n, k), &bytes, &x);
        // Of many rows, some.
        for row in (0..rows).step_by(rows.div_ceil(40)) {
            let own = &x[row * k..(row + 1) * k];
            for (w, found) in values.chunks(k).zip(&all[row * n..]) {
                let error = (f64::from(*found) - dot(own, w)).abs();
                let most = bound(cpu.precision(), element, packing, own, w);
                assert!(error <= most, "{name} {element:?} {rows}x{n}x{k}: {error} is more than {most}");
            }
        }
        for row in [0, rows / 2, rows - 1] {
            let alone = product(cpu, element, packing, (n, k), &bytes, &x[row * k..(row + 1) * k]);
            same_bits(&alone, &all[row * n..(row + 1) * n]);
        }
        let three = rounding(3).into_iter().find(|c| (c.path(), c.precision()) == (cpu.path(), cpu.precision()));
        same_bits(&product(&three.unwrap(), element, packing, (n, k), &bytes, &x), &all);
    }
}

/// What a quantised matrix is planned to take where it is held value for value, and what it takes.
#[test]
fn strips_take_what_is_planned() {
    let mut numbers = Numbers::new(56);
    let cpu = Cpu::new(2, Some(Path::Portable)).unwrap();
    for element in super::products::FORMATS.into_iter().filter(|element| element.block().0 > 1) {
        let (n, k) = (37, 512);
        let bytes = stored(element, n * k, &mut numbers);
        let packed = PackedMatrix::plain(&cpu, n, k, Source { element, bytes: &bytes }, Packing::Compact).unwrap();
        assert_eq!(packed.bytes(), PackedMatrix::strips_bytes(element, n, k), "{element:?}");
    }
    let (two, three) = (ElementType::Q2K, ElementType::Q3K);
    assert_eq!((PackedMatrix::strips_bytes(two, 32, 256), PackedMatrix::strips_bytes(three, 32, 256)), (5248, 4736));
}

/// Bytes with coarse scales are another matrix, close to the stored one; rows and pieces of it are the same numbers
/// that its products see, whatever computes them.
#[test]
fn coarse_bytes_stay_close_to_what_is_stored() {
    let mut numbers = Numbers::new(55);
    let Some(cpu) = rounding(2).into_iter().find(|cpu| cpu.packs_bytes()) else { return };
    for (element, packing) in super::products::FORMATS
        .into_iter()
        .filter(|element| element.block().0 > 1)
        .flat_map(|element| [(element, Packing::Fast), (element, Packing::Compact)])
    {
        let (n, k) = (37, if element.block().0 == 32 { 352 } else { 512 });
        let bytes = stored(element, n * k, &mut numbers);
        let mut values = vec![0.0; n * k];
        dequantise(element, &bytes, &mut values).unwrap();
        let packed = PackedMatrix::plain(&cpu, n, k, Source { element, bytes: &bytes }, packing).unwrap();
        assert_eq!(packed.bytes(), PackedMatrix::coarse_bytes(element, n, k, packing));
        let mut rounded = vec![0.0; n * k];
        let (mut squares, mut total) = (0.0, 0.0);
        for (i, (row, stored)) in rounded.chunks_mut(k).zip(values.chunks(k)).enumerate() {
            packed.row(i, row).unwrap();
            for (row, stored) in row.chunks(256).zip(stored.chunks(256)) {
                let most = off(element, packing, stored) * 1.0001;
                for (a, b) in row.iter().zip(stored) {
                    let error = f64::from(a - b);
                    assert!(error.abs() <= most, "{element:?} {packing:?}: {error} of {b}, at most {most}");
                    squares += error * error;
                    total += f64::from(b * b);
                }
            }
        }
        let relative = (squares / total).sqrt();
        println!("{element:?} {packing:?}: off by {relative:.5} of their size");
        // No number of 4 to 6 bits is as close as that to what it was made from.
        assert!(relative < 0.012, "{element:?} {packing:?}: {relative}");
        let x = numbers.vector(3 * k);
        let (mut found, mut wanted) = (vec![0.0; 3 * n], vec![0.0; 3 * n]);
        for path in Path::ALL.into_iter().filter(|path| path.supported()) {
            let exact = Cpu::new(2, Some(path)).unwrap();
            exact.matmul(&x, &packed, &mut found).unwrap();
            exact.matmul(&x, &plain(&exact, n, k, &rounded), &mut wanted).unwrap();
            same_bits(&found, &wanted);
            let halves = exact.with_precision(Precision::Bf16);
            if halves.precision() == Precision::Bf16 {
                halves.matmul(&x, &packed, &mut found).unwrap();
                for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
                    let (x, w) = (&x[i / n * k..][..k], &rounded[i % n * k..][..k]);
                    let most = bound(Precision::Bf16, element, packing, x, w);
                    assert!(f64::from(found - wanted).abs() <= most, "{path:?}");
                }
            }
        }
        // Its products see these numbers, and round nothing else but x.
        cpu.matmul(&x, &packed, &mut found).unwrap();
        for (i, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            let (x, w) = (&x[i / n * k..][..k], &rounded[i % n * k..][..k]);
            let max = x.iter().fold(0f32, |max, x| max.max(x.abs()));
            let most = f64::from(max) / 254.0 * w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * 1.001 + 1e-4;
            assert!(f64::from(found - wanted).abs() <= most, "{element:?} {packing:?}");
        }
    }
}

#[test]
fn every_format_stays_within_its_bound() {
    let mut numbers = Numbers::new(51);
    for element in super::products::FORMATS {
        check(element, 20, 96, 512, &mut numbers);
    }
}

#[test]
fn every_shape_stays_within_its_bound() {
    let mut numbers = Numbers::new(52);
    for (rows, n, k) in [(1, 1, 1), (1, 33, 7), (2, 31, 256), (17, 64, 257), (33, 40, 30), (131, 65, 96)] {
        check(ElementType::Bf16, rows, n, k, &mut numbers);
    }
    for (rows, n, k) in [(1, 1, 32), (1, 33, 704), (16, 40, 2112), (31, 64, 704), (32, 96, 96), (257, 33, 2112)] {
        check(ElementType::Q5_0, rows, n, k, &mut numbers);
        check(ElementType::Q8_0, rows, n, k, &mut numbers);
    }
    check(ElementType::Bf16, 1024, 33, 2112, &mut numbers);
    check(ElementType::Q8_0, 1024, 33, 704, &mut numbers);
    check(ElementType::Q4K, 1024, 33, 768, &mut numbers);
}

#[test]
fn a_damaged_row_spoils_no_other_when_rounded() {
    let mut numbers = Numbers::new(53);
    let (rows, n, k) = (15, 48, 64);
    let x = numbers.vector(rows * k);
    for (element, packing) in
        [(ElementType::Bf16, Packing::Fast), (ElementType::Q8_0, Packing::Fast), (ElementType::Q8_0, Packing::Compact)]
    {
        let bytes = stored(element, n * k, &mut numbers);
        for cpu in rounding(1) {
            let good = product(&cpu, element, packing, (n, k), &bytes, &x);
            for damage in [f32::NAN, f32::INFINITY] {
                let mut x = x.clone();
                x[6 * k + 3] = damage;
                let bad = product(&cpu, element, packing, (n, k), &bytes, &x);
                same_bits(&good[..6 * n], &bad[..6 * n]);
                same_bits(&good[7 * n..], &bad[7 * n..]);
                assert!(bad[6 * n..7 * n].iter().all(|y| !y.is_finite()), "{:?}", cpu.path());
            }
        }
    }
}

#[test]
fn experts_stay_close_to_exact_ones_and_are_the_same_in_company() {
    let mut numbers = Numbers::new(54);
    let (count, hidden, inner, rows, top_k) = (6, 256, 96, 40, 2);
    let matrices = |element, n, k, numbers: &mut Numbers| -> Vec<Vec<u8>> {
        (0..count).map(|_| stored(element, n * k, numbers)).collect()
    };
    let gate_up = matrices(ElementType::Q4K, 2 * inner, hidden, &mut numbers);
    let down = matrices(ElementType::Q5_0, hidden, inner, &mut numbers);
    let x = numbers.vector(rows * hidden);
    let experts: Vec<u32> = (0..rows * top_k).map(|slot| ((slot / 2 * 5 + slot % 2) % count) as u32).collect();
    let weights = vec![0.5; experts.len()];
    let run = |cpu: &Cpu, rows: std::ops::Range<usize>| {
        let gated = |bytes: &Vec<u8>| {
            let (gate, up) = bytes.split_at(bytes.len() / 2);
            let source = |bytes| Source { element: ElementType::Q4K, bytes };
            PackedMatrix::gated(cpu, inner, hidden, source(gate), source(up), Packing::Compact).unwrap()
        };
        let plain = |bytes: &Vec<u8>| {
            PackedMatrix::plain(cpu, hidden, inner, Source { element: ElementType::Q5_0, bytes }, Packing::Compact)
                .unwrap()
        };
        let layer = Experts::new(gate_up.iter().map(gated).collect(), down.iter().map(plain).collect()).unwrap();
        let slots = rows.start * top_k..rows.end * top_k;
        let routing = Routing { experts: &experts[slots.clone()], weights: &weights[slots], top_k };
        let mut out = vec![f32::NAN; rows.len() * hidden];
        cpu.experts(&x[rows.start * hidden..rows.end * hidden], routing, &layer, &mut out).unwrap();
        out
    };
    let exact = run(&Cpu::new(2, None).unwrap(), 0..rows);
    let size = (exact.iter().map(|y| f64::from(y * y)).sum::<f64>() / exact.len() as f64).sqrt();
    for cpu in rounding(2) {
        let all = run(&cpu, 0..rows);
        let squares: f64 = all.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let error = (squares / all.len() as f64).sqrt();
        assert!(error < 0.03 * size, "{:?}: {error} of {size}", cpu.precision());
        for row in [0, 17, rows - 1] {
            same_bits(&run(&cpu, row..row + 1), &all[row * hidden..(row + 1) * hidden]);
        }
    }
}

#[test]
fn a_precision_is_what_the_processor_has_and_is_named() {
    for precision in Precision::ALL {
        assert_eq!(Precision::parse(precision.name()), Some(precision));
        let cpu = Cpu::new(1, Some(Path::Portable)).unwrap().with_precision(precision);
        assert_eq!(cpu.precision(), Precision::Exact);
    }
    assert_eq!(Precision::parse("fast"), None);
}
