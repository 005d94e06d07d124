//! Kernel speed in operations per second of CPU time, one thread, beside the bound that this processor sets.
//!
//! `cargo bench -p canvasd-kernels` runs all; a word after it picks groups (`-- products`). CANVASD_CPU_PATH forces
//! a path (`portable`, `avx2`, `avx512`, `amx`). CPU time instead of the wall clock keeps the figures honest on a busy
//! machine. Throughput is printed as elements: one element is one operation, a multiply-add counting two. The bound of
//! each precision, measured from registers, is printed before its groups: a product in it cannot be faster.

use std::{hint::black_box, time::Duration};

use canvasd_kernels::{
    ElementType,
    cpu::{
        Attention, Cpu, Draw, Experts, Head, KvElement, KvPool, KvWrite, PackedMatrix, Packing, Path, Precision,
        Routing, Sight, Source, Span, Sweep, row_bytes,
    },
};
use criterion::{
    BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter, WallTime},
};

/// CPU time of this process.
struct CpuTime(WallTime);

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid place for the result.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut now) };
        assert_eq!(failed, 0, "the CPU clock of a process can always be read");
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }
    fn end(&self, start: Duration) -> Duration {
        self.start() - start
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self.0.formatter()
    }
}

/// One CPU for each precision that the path has, with the end of its groups' names.
fn cpus() -> Vec<(Cpu, String)> {
    let path = std::env::var("CANVASD_CPU_PATH").ok();
    let named = |name: String| Path::ALL.into_iter().find(|path| path.name() == name);
    let path = path.map(|name| named(name).expect("CANVASD_CPU_PATH is portable, avx2, avx512 or amx"));
    let cpu = |precision| Cpu::new(1, path).expect("a path of this processor").with_precision(precision);
    let all = Precision::ALL.into_iter().map(|precision| (precision, cpu(precision)));
    let own = all.filter(|(precision, cpu)| cpu.precision() == *precision);
    own.map(|(precision, cpu)| (cpu, format!(" {}", precision.name()))).collect()
}

/// Says what bounds the groups of this CPU.
fn bound(cpu: &Cpu) {
    let peak = cpu.peak();
    let giga = |rate: Option<f64>| rate.map_or_else(|| "none".to_owned(), |rate| format!("{:.0} G/s", rate / 1e9));
    eprintln!(
        "{} in {}: bounds {} in f32, {} in bf16, {} in bytes, {:.1} GB/s read",
        cpu.path().name(),
        cpu.precision().name(),
        giga(Some(peak.flops)),
        giga(peak.bf16),
        giga(peak.bytes),
        peak.read / 1e9
    );
}

/// Reproducible numbers in −1 … 1.
fn numbers(length: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / (1u64 << 31) as f32 - 1.0
        })
        .collect()
}

/// Random stored bytes whose scales are tame: every pair of bytes reads as a small f16, f32 or bf16.
fn stored(element: ElementType, rows: usize, width: usize) -> Vec<u8> {
    let length = rows * row_bytes(element, width).expect("whole blocks");
    let mut bytes: Vec<u8> = numbers(length, 7).iter().map(|x| (x * 127.0) as i8 as u8).collect();
    if matches!(element, ElementType::F32 | ElementType::Bf16 | ElementType::F16) {
        let size = element.block().1;
        for number in bytes.chunks_exact_mut(size) {
            number[size - 1] = 0x3c | (number[size - 1] & 0x80);
        }
    } else {
        let (_, size) = element.block();
        let scales: &[usize] = match element {
            ElementType::Q6K => &[208],
            ElementType::Q4K | ElementType::Q5K => &[0, 2],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(size) {
            scales.iter().for_each(|at| block[at + 1] = 0x14);
        }
    }
    bytes
}

fn matrix(cpu: &Cpu, element: ElementType, n: usize, k: usize, packing: Packing) -> PackedMatrix {
    let bytes = stored(element, n, k);
    PackedMatrix::plain(cpu, n, k, Source { element, bytes: &bytes }, packing).expect("a matrix")
}

fn products(c: &mut Criterion<CpuTime>) {
    for (cpu, name) in cpus() {
        bound(&cpu);
        products_of(c, &cpu, &format!("products{name}"));
    }
}

fn products_of(c: &mut Criterion<CpuTime>, cpu: &Cpu, name: &str) {
    let mut group = c.benchmark_group(name);
    let all =
        [ElementType::F32, ElementType::Bf16, ElementType::Q4K, ElementType::Q5_0, ElementType::Q6K, ElementType::Q8_0];
    // Packed for speed, every quantised format is the same bytes.
    let coarse = cpu.packs_bytes().then_some((ElementType::Q8_0, Packing::Fast));
    for (element, packing) in all.map(|element| (element, Packing::Compact)).into_iter().chain(coarse) {
        let label = match packing {
            Packing::Compact => format!("{element:?}"),
            Packing::Fast => "coarse".to_owned(),
        };
        let shapes: [(usize, usize, usize); 7] = [
            (256, 2112, 2816),
            (256, 2816, 2112),
            (256, 2816, 704),
            (16, 1408, 2816),
            (16, 2816, 2112),
            (16, 2816, 704),
            (1, 2816, 2816),
        ];
        // Not every length is a whole number of every format's blocks.
        for (rows, n, k) in shapes.into_iter().filter(|shape| shape.2.is_multiple_of(element.block().0)) {
            let weight = matrix(cpu, element, n, k, packing);
            let x = numbers(rows * k, 1);
            let mut out = vec![0.0; rows * n];
            group.throughput(Throughput::Elements(2 * (rows * n * k) as u64));
            group.bench_function(BenchmarkId::new(&label, format!("{rows}x{n}x{k}")), |b| {
                b.iter(|| cpu.matmul(black_box(&x), &weight, &mut out).expect("shapes agree"));
            });
        }
    }
}

/// The true layer has 128 experts with 8 per row, 16 rows each at 256 rows; a tenth of that suffices.
fn experts(c: &mut Criterion<CpuTime>) {
    for (cpu, name) in cpus() {
        experts_of(c, &cpu, &format!("experts{name}"));
    }
}

fn experts_of(c: &mut Criterion<CpuTime>, cpu: &Cpu, name: &str) {
    let mut group = c.benchmark_group(name);
    let (count, hidden, inner, top_k) = (12, 2816, 704, 8);
    for (gate_up, down) in [
        (ElementType::F32, ElementType::F32),
        (ElementType::Q4K, ElementType::Q5_0),
        (ElementType::Q4K, ElementType::Q8_0),
    ] {
        let bytes = stored(gate_up, 2 * inner, hidden);
        let (gate, up) = bytes.split_at(bytes.len() / 2);
        let source = |bytes| Source { element: gate_up, bytes };
        let gated =
            |_| PackedMatrix::gated(cpu, inner, hidden, source(gate), source(up), Packing::Compact).expect("a matrix");
        let downs = (0..count).map(|_| matrix(cpu, down, hidden, inner, Packing::Compact)).collect();
        let layer = Experts::new((0..count).map(gated).collect(), downs).expect("a layer");
        let rows = 24;
        let experts: Vec<u32> = (0..rows * top_k).map(|slot| (slot * 7 % count) as u32).collect();
        let weights = vec![0.125; experts.len()];
        let x = numbers(rows * hidden, 2);
        let mut out = vec![0.0; x.len()];
        group.throughput(Throughput::Elements(2 * 3 * (rows * top_k * hidden * inner) as u64));
        group.bench_function(BenchmarkId::new(format!("{gate_up:?}+{down:?}"), "16 rows each"), |b| {
            let routing = Routing { experts: &experts, weights: &weights, top_k };
            b.iter(|| cpu.experts(black_box(&x), routing, &layer, &mut out).expect("shapes agree"));
        });
    }
}

fn attention(c: &mut Criterion<CpuTime>) {
    for (cpu, name) in cpus() {
        attention_of(c, &cpu, &format!("attention{name}"));
    }
}

fn attention_of(c: &mut Criterion<CpuTime>, cpu: &Cpu, name: &str) {
    let mut group = c.benchmark_group(name);
    for (kind, heads, kv_heads, dim, window) in [("sliding", 16, 8, 256, Some(1024)), ("full", 16, 2, 512, None)] {
        for prefix in [512, 2048] {
            let rows = 256;
            let mut pool = KvPool::new(KvElement::Bf16, prefix / 64, kv_heads, dim);
            let pages: Vec<u32> = (0..prefix as u32 / 64).collect();
            let (k, v) = (numbers(prefix * kv_heads * dim, 3), numbers(prefix * kv_heads * dim, 4));
            let write = KvWrite { row: 0, rows: prefix, position: 0, pages: &pages, from: 0 };
            cpu.write(&mut pool, &k, &v, &[write]).expect("pages");
            let q: Vec<f32> = numbers(rows * heads * dim, 5).iter().map(|x| x * 0.1).collect();
            let (k, v) = (&k[..rows * kv_heads * dim], &v[..rows * kv_heads * dim]);
            let mut out = vec![0.0; q.len()];
            let spans = [Span { row: 0, rows, sight: Sight::Denoise, prefix, pages: &pages, from: 0 }];
            let seen = window.map_or(prefix, |window: usize| prefix.min(window - 1)) + rows;
            group.throughput(Throughput::Elements(4 * (rows * heads * dim * seen) as u64));
            group.bench_function(BenchmarkId::new(kind, prefix), |b| {
                let attention = Attention { heads, window, spans: &spans };
                b.iter(|| cpu.attend(attention, black_box(&q), k, v, &pool, &mut out).expect("shapes agree"));
            });
        }
    }
}

/// A tenth of the true vocabulary. Flat rows make the soft embedding dense, peaked ones sparse.
fn sweep(c: &mut Criterion<CpuTime>) {
    for (cpu, name) in cpus() {
        sweep_of(c, &cpu, &format!("sweep{name}"));
    }
}

fn sweep_of(c: &mut Criterion<CpuTime>, cpu: &Cpu, name: &str) {
    let mut group = c.benchmark_group(name);
    let (rows, vocabulary, width) = (256, 8192, 2816);
    let uniforms = vec![0.5; rows];
    for element in [ElementType::F32, ElementType::Q6K] {
        let table = matrix(cpu, element, vocabulary, width, Packing::Fast);
        let mut row = vec![0.0; width];
        table.row(5, &mut row).expect("row 5");
        let norm: f32 = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        for (kind, peak) in [("flat", 0.0), ("peaked", 400.0)] {
            // Peaked rows point at one entry each.
            let mut hidden: Vec<f32> = numbers(rows * width, 6).iter().map(|x| x * 0.02 / norm).collect();
            for (i, hidden) in hidden.chunks_exact_mut(width).enumerate() {
                table.row(i * 31 % vocabulary, &mut row).expect("inside the table");
                hidden.iter_mut().zip(&row).for_each(|(x, e)| *x += peak * e / (norm * norm));
            }
            let head = Head {
                rows,
                temperature: 0.6,
                draw: Draw::Scaled { temperature: 1.0, top_p: 1.0 },
                uniforms: &uniforms,
                bias: &[],
                top_k: 0,
            };
            let settings =
                Sweep { softcap: Some(30.0), tile: 256, negligible: 28.0, heads: &[head], watch: None, times: None };
            let hints: Vec<u32> = (0..rows).map(|row| (row * 31 % vocabulary) as u32).collect();
            let mut soft = vec![0.0; hidden.len()];
            group.throughput(Throughput::Elements(4 * (rows * vocabulary * width) as u64));
            group.bench_function(BenchmarkId::new(format!("{element:?}"), kind), |b| {
                b.iter(|| {
                    cpu.sweep_from(black_box(&hidden), &table, &settings, &hints, Some(&mut soft))
                        .expect("shapes agree")
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .with_measurement(CpuTime(WallTime))
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .without_plots();
    targets = products, experts, attention, sweep
}
criterion_main!(benches);
