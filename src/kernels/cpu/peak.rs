//! What this processor can do at most, measured: the yardstick beside every other figure.

use std::{hint::black_box, time::Instant};

use super::{
    Cpu, Engines, Precision,
    bytes::Vnni,
    memory::Aligned,
    path::{Checked, Task},
    simd::Simd,
};

/// Rates of all threads of a [`Cpu`] together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// f32 operations per second from registers alone, a multiply-add counting two.
    pub flops: f64,
    /// Bytes per second read from memory.
    pub read: f64,
    /// The same with operands in bf16, by the path's best instruction; `None` where there is none.
    pub bf16: Option<f64>,
    /// The same with operands in bytes; `None` where products are not computed so.
    pub bytes: Option<f64>,
}

/// Rounds per try, and tries of which the best counts: other programs can only slow them down.
const ROUNDS: usize = 200_000;
const TRIES: usize = 5;
/// Bytes read per try, all threads together: more than the caches hold. Nobody has asked what memory is free yet, so it
/// does not grow with the threads.
const READ: usize = 1 << 30;
/// Bytes of one thread's share: at least more than its own caches hold, at most what is enough to measure.
const LEAST: usize = 4 << 20;
const MOST: usize = 96 << 20;

/// Bytes that each of so many threads reads: whole pages.
fn share(threads: usize) -> usize {
    (READ / threads.max(1)).clamp(LEAST, MOST) & !0xfff
}

impl Cpu {
    /// Measures for some tenths of a second.
    pub fn peak(&self) -> Peak {
        let threads = self.threads();
        let path = self.checked();
        let lanes = path.run(Lanes);
        let share = share(threads);
        let buffers: Vec<Aligned<f32>> = (0..threads)
            .map(|_| {
                let mut buffer = Aligned::zeroed(share / size_of::<f32>());
                // Pages that were never written all lie on one.
                buffer.iter_mut().step_by(1024).for_each(|x| *x = 1.0);
                buffer
            })
            .collect();
        let rounded = |precision| Engines::new(self.path(), path, precision);
        let (pairs, bytes) = (rounded(Precision::Bf16).pairs, rounded(Precision::Bytes).bytes);
        let (mut flops, mut read, mut bf16, mut bytes_rate) = (0.0f64, 0.0f64, None, None);
        for _ in 0..TRIES {
            let seconds = self.time(|_| {
                black_box(path.run(MultiplyAdd));
            });
            flops = flops.max((threads * ROUNDS * CHAINS * lanes * 2) as f64 / seconds);
            let seconds = self.time(|thread| {
                black_box(sum(path, &buffers[thread]));
            });
            read = read.max((threads * share) as f64 / seconds);
            let rate = |operations: usize, seconds: f64| (threads * operations) as f64 / seconds;
            if let Some(pairs) = pairs {
                let seconds = self.time(|_| pairs.spin(ROUNDS));
                bf16 = Some(rate(pairs.spun(ROUNDS), seconds).max(bf16.unwrap_or(0.0)));
            }
            if let Some(vnni) = bytes {
                let seconds = self.time(|_| vnni.spin(ROUNDS));
                bytes_rate = Some(rate(Vnni::spun(ROUNDS), seconds).max(bytes_rate.unwrap_or(0.0)));
            }
        }
        Peak { flops, read, bf16, bytes: bytes_rate }
    }

    fn time(&self, work: impl Fn(usize) + Sync) -> f64 {
        let start = Instant::now();
        self.pool().run(self.threads(), work).expect("measuring does not panic");
        start.elapsed().as_secs_f64()
    }
}

fn sum(path: Checked, values: &[f32]) -> f32 {
    path.run(Sum(values))
}

/// Independent chains of multiply-adds: enough to hide their latency, few enough for the registers of every path.
const CHAINS: usize = 12;

struct Lanes;
impl Task for Lanes {
    type Output = usize;
    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        S::LANES
    }
}

struct MultiplyAdd;
impl Task for MultiplyAdd {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let (a, b) = (s.splat(black_box(0.999)), s.splat(black_box(0.001)));
        let mut sums = [s.splat(black_box(1.0)); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = s.fma(*sum, a, b);
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + s.sum(sum))
    }
}

struct Sum<'a>(&'a [f32]);
impl Task for Sum<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 4];
        for part in self.0.chunks_exact(4 * S::LANES) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: a part holds four vectors.
                *sum = s.add(*sum, unsafe { s.load(part.as_ptr().add(i * S::LANES)) });
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + s.sum(sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_threads_share_what_few_take() {
        for few in 1..=10 {
            assert_eq!(share(few), MOST);
        }
        for many in 11..=256 {
            assert!(share(many) * many <= READ && share(many) >= LEAST, "{many} threads");
        }
        assert_eq!(share(1024), LEAST);
    }
}
