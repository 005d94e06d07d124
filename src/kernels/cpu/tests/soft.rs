//! The soft embedding in bytes: against the sum over the table as it is stored, under distributions of every kind.

use super::{super::layout::PANEL, precision::rounding, *};

/// Columns of the tables here: a whole group of 256 and a short one.
const WIDTH: usize = 320;
const TILE: usize = 256;
/// Forty tiles, the last of which ends inside a panel: at first a tile is much of a row, in the end little.
const VOCABULARY: usize = 10_190;

/// The CPU that computes soft embeddings in bytes, where the processor has the instructions.
fn cpu(threads: usize) -> Option<Cpu> {
    rounding(threads).into_iter().find(Cpu::packs_bytes)
}

/// A table of bytes, whose tokens have `share` of a direction in common, as real ones do. In column 0 all of them are 1,
/// and 2 or −2 in the first of every other 64, so that all have the same scale.
fn table(cpu: &Cpu, share: f32, numbers: &mut Numbers) -> PackedMatrix {
    let common = numbers.vector(WIDTH);
    let mut bytes = Vec::new();
    for _ in 0..VOCABULARY {
        let mut row: Vec<f32> = numbers.vector(WIDTH).iter().zip(&common).map(|(own, all)| own + share * all).collect();
        row.iter_mut().step_by(64).for_each(|x| *x = x.signum() * 2.0);
        row[0] = 1.0;
        row[1] = 2.0;
        for block in row.chunks(32) {
            let scale = half::f16::from_f32(2.0 / 127.0);
            bytes.extend(scale.to_le_bytes());
            bytes.extend(block.iter().map(|x| (x / scale.to_f32()).round() as i8 as u8));
        }
    }
    PackedMatrix::plain(cpu, VOCABULARY, WIDTH, Source { element: ElementType::Q8_0, bytes: &bytes }, Packing::Fast)
        .unwrap()
}

/// Logits of named distributions, and how far the soft embedding may be off in proportion to its size.
fn distributions(numbers: &mut Numbers) -> Vec<(&'static str, Vec<f32>, f64)> {
    // Close enough to bell-shaped.
    let bell = |width: f32, numbers: &mut Numbers| -> Vec<f32> {
        (0..VOCABULARY).map(|_| (0..6).map(|_| numbers.number()).sum::<f32>() * 0.707 * width).collect()
    };
    let with_peak = |mut z: Vec<f32>, share: f32| {
        let mass: f32 = z.iter().map(|z| z.exp()).sum();
        z[777] = (mass * share / (1.0 - share)).ln();
        z
    };
    let ranks = |order: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..VOCABULARY).map(|token| -1.2 * ((order(token) + 1) as f32).ln()).collect()
    };
    let ripple = |small: f32| -> Vec<f32> {
        (0..VOCABULARY).map(|token| if token % TILE == 3 { 0.0 } else { -small.ln() }).collect()
    };
    vec![
        ("even", vec![0.0; VOCABULARY], 0.0005),
        ("nearly even", bell(0.3, numbers), 0.0005),
        ("a bell of 1", bell(1.0, numbers), 0.001),
        ("a bell of 3", bell(3.0, numbers), 0.004),
        ("a half beside an even tail", with_peak(vec![0.0; VOCABULARY], 0.5), 0.001),
        ("a half beside a bell", with_peak(bell(1.0, numbers), 0.5), 0.001),
        ("nearly all beside a bell", with_peak(bell(1.0, numbers), 0.99), 0.001),
        ("falling by rank, in order", ranks(&|token| token), 0.003),
        ("falling by rank, mixed", ranks(&|token| token * 577 % VOCABULARY), 0.003),
        ("the rest of each tile just below half a step", ripple(515.0), 0.002),
        ("the rest of each tile just above half a step", ripple(505.0), 0.002),
        ("one token", (0..VOCABULARY).map(|token| if token == 300 { 90.0 } else { 0.0 }).collect(), 1e-6),
        (
            "two tokens and a trace",
            with_peak((0..VOCABULARY).map(|t| if t == 9 { 12.0 } else { -9.0 }).collect(), 0.4),
            0.001,
        ),
    ]
}

/// Sweeps rows of zeros, except those given, under biases that make the distributions; two rows each.
fn sweep(cpu: &Cpu, table: &PackedMatrix, hidden: &[f32], biases: &[Vec<(u32, f32)>], temperature: f32) -> Vec<f32> {
    let heads: Vec<Head<'_>> = biases
        .iter()
        .map(|bias| Head { rows: 2, temperature, draw: Draw::Argmax, uniforms: &[], bias, top_k: 0 })
        .collect();
    let settings = Sweep { softcap: Some(30.0), tile: TILE, negligible: 28.0, heads: &heads, watch: None, times: None };
    let mut soft = vec![0.0; hidden.len()];
    cpu.sweep(hidden, table, &settings, Some(&mut soft)).unwrap();
    soft
}

fn biases(distributions: &[(&'static str, Vec<f32>, f64)]) -> Vec<Vec<(u32, f32)>> {
    distributions.iter().map(|(_, z, _)| (0..).zip(z.iter().copied()).collect()).collect()
}

#[test]
fn bytes_keep_every_kind_of_distribution() {
    let Some(cpu) = cpu(2) else { return };
    // Without a direction in common, sums over many tokens are small, and errors large beside them.
    for (share, more) in [(0.4, 1.0), (0.0, 4.0)] {
        println!("share {share}");
        keep_every_kind_of_distribution(&cpu, share, more);
    }
}

fn keep_every_kind_of_distribution(cpu: &Cpu, share: f32, more: f64) {
    let mut numbers = Numbers::new(61);
    let table = table(cpu, share, &mut numbers);
    let mut stored = vec![0.0; VOCABULARY * WIDTH];
    stored.chunks_mut(WIDTH).enumerate().for_each(|(token, row)| table.row(token, row).unwrap());
    let all = distributions(&mut numbers);
    let biases = biases(&all);
    let temperature = 0.8;
    let scaled: Vec<Vec<(u32, f32)>> =
        biases.iter().map(|bias| bias.iter().map(|(token, z)| (*token, z * temperature)).collect()).collect();
    let soft = sweep(cpu, &table, &vec![0.0; 2 * all.len() * WIDTH], &scaled, temperature);
    for ((name, z, most), soft) in all.iter().zip(soft.chunks(2 * WIDTH)) {
        same_bits(&soft[..WIDTH], &soft[WIDTH..]);
        let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = z.iter().map(|z| f64::from(z - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let (mut wanted, mut bound) = (vec![0.0; WIDTH], vec![1e-5; WIDTH]);
        for (tile, weights) in weights.chunks(TILE).enumerate() {
            let rows = &stored[tile * TILE * WIDTH..][..weights.len() * WIDTH];
            // All scales are the same: weights are rounded to steps of the largest's 255th part.
            let step = weights.iter().copied().fold(0.0, f64::max) / 255.0;
            for d in 0..WIDTH {
                let column = rows[d..].iter().step_by(WIDTH).map(|x| f64::from(*x));
                let mean = column.clone().sum::<f64>() / weights.len() as f64;
                bound[d] += step / 2.0 / sum * column.clone().map(|x| (x - mean).abs()).sum::<f64>();
                wanted[d] += column.zip(weights).map(|(x, weight)| x * weight / sum).sum::<f64>();
            }
        }
        let (mut error, mut size) = (0.0, 0.0);
        for ((found, wanted), bound) in soft.iter().zip(&wanted).zip(&bound) {
            let off = f64::from(*found) - wanted;
            assert!(off.abs() <= *bound, "{name}: {off} is more than {bound}");
            error += off * off;
            size += wanted * wanted;
        }
        let error = (error / size).sqrt();
        println!(
            "{name}: off by {:.4} %, mass by {:.5} %",
            100.0 * error,
            100.0 * (f64::from(soft[0]) / wanted[0] - 1.0)
        );
        assert!(error <= most * more, "{name}: {error}");
        // What all tokens have in common shows whether mass was lost.
        assert!((f64::from(soft[0]) / wanted[0] - 1.0).abs() < 2e-5, "{name}: {} of {}", soft[0], wanted[0]);
    }
}

#[test]
fn bytes_do_not_depend_on_their_company_or_the_threads() {
    let Some(cpu_of_one) = cpu(1) else { return };
    let mut numbers = Numbers::new(62);
    let table = table(&cpu_of_one, 0.4, &mut numbers);
    let biases = biases(&distributions(&mut numbers));
    let hidden: Vec<f32> = numbers.vector(2 * biases.len() * WIDTH).iter().map(|x| x * 0.05).collect();
    let all = sweep(&cpu_of_one, &table, &hidden, &biases, 0.9);
    for threads in [2, 3] {
        same_bits(&sweep(&cpu(threads).unwrap(), &table, &hidden, &biases, 0.9), &all);
    }
    for (index, bias) in biases.iter().enumerate() {
        let own = 2 * index * WIDTH..2 * (index + 1) * WIDTH;
        let alone = sweep(&cpu_of_one, &table, &hidden[own.clone()], std::slice::from_ref(bias), 0.9);
        same_bits(&alone, &all[own]);
    }
}

#[test]
fn bytes_agree_with_a_sweep_in_floats() {
    let Some(cpu) = cpu(2) else { return };
    let mut numbers = Numbers::new(63);
    for (vocabulary, width, tile, rows) in
        [(40, 32, 256, 1), (517, 96, 96, 14), (700, 256, 128, 5), (1000, 704, 1000, 40)]
    {
        let bytes = super::products::stored(ElementType::Q8_0, vocabulary * width, &mut numbers);
        let table = PackedMatrix::plain(
            &cpu,
            vocabulary,
            width,
            Source { element: ElementType::Q8_0, bytes: &bytes },
            Packing::Fast,
        )
        .unwrap();
        let mut stored = vec![0.0; vocabulary * width];
        stored.chunks_mut(width).enumerate().for_each(|(token, row)| table.row(token, row).unwrap());
        let size = (stored.iter().map(|x| x * x).sum::<f32>() / stored.len() as f32).sqrt();
        let hidden: Vec<f32> = numbers.vector(rows * width).iter().map(|x| x * 0.3 / size).collect();
        let seen = std::sync::Mutex::new(vec![0.0; rows * vocabulary]);
        let watch = |row: usize, first: usize, z: &[f32]| {
            seen.lock().unwrap()[row * vocabulary + first..][..z.len()].copy_from_slice(z);
        };
        let head = Head { rows, temperature: 0.7, draw: Draw::Argmax, uniforms: &[], bias: &[], top_k: 0 };
        let settings =
            Sweep { softcap: Some(30.0), tile, negligible: 28.0, heads: &[head], watch: Some(&watch), times: None };
        let mut soft = vec![0.0; hidden.len()];
        cpu.sweep(&hidden, &table, &settings, Some(&mut soft)).unwrap();
        let seen = seen.into_inner().unwrap();
        for (z, soft) in seen.chunks(vocabulary).zip(soft.chunks(width)) {
            let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = z.iter().map(|z| (f64::from(z - max) / 0.7).exp()).collect();
            let sum: f64 = weights.iter().sum();
            // Tokens are as good as independent here, and so are errors: as large as the weights' own root of squares
            // times what one is off by, give or take.
            let unit = weights.iter().copied().fold(0.0, f64::max) / 255.0 * (vocabulary as f64 / 12.0).sqrt();
            let spread = weights.iter().map(|w| w * w).sum::<f64>().sqrt() / 1000.0;
            let tolerance = 8.0 * (unit + spread) * f64::from(size) / sum;
            let wanted: Vec<f64> = (0..width)
                .map(|d| {
                    weights.iter().zip(stored[d..].iter().step_by(width)).map(|(w, x)| w / sum * f64::from(*x)).sum()
                })
                .collect();
            close(soft, &wanted, tolerance);
        }
    }
}

#[test]
fn a_damaged_row_is_spoiled_alone_in_bytes() {
    let Some(cpu) = cpu(2) else { return };
    let mut numbers = Numbers::new(64);
    let table = table(&cpu, 0.4, &mut numbers);
    let biases = &biases(&distributions(&mut numbers))[..4];
    let mut hidden: Vec<f32> = numbers.vector(8 * WIDTH).iter().map(|x| x * 0.05).collect();
    let good = sweep(&cpu, &table, &hidden, biases, 0.9);
    hidden[5 * WIDTH + 7] = f32::NAN;
    let bad = sweep(&cpu, &table, &hidden, biases, 0.9);
    same_bits(&good[..5 * WIDTH], &bad[..5 * WIDTH]);
    same_bits(&good[6 * WIDTH..], &bad[6 * WIDTH..]);
    assert!(bad[5 * WIDTH..6 * WIDTH].iter().all(|x| x.is_nan()));
}

#[test]
fn the_tables_here_have_one_scale() {
    let Some(cpu) = cpu(1) else { return };
    let table = table(&cpu, 0.4, &mut Numbers::new(61));
    let coarse = table.coarse().unwrap();
    let scales: Vec<f32> = (0..VOCABULARY)
        .flat_map(|token| [0, 1].map(|group| coarse.scales(token / PANEL, group)[token % PANEL]))
        .collect();
    assert!(scales.iter().all(|scale| *scale == scales[0]));
}
