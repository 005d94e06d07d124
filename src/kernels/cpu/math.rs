//! Vectorised exponential and what is made of it. Errors stay within a few units in the last place.

use super::simd::Simd;

/// `e^x`: 0 below −87.3 (below −104, and with few bits down to there, where the path scales freely), infinite above
/// 88.8, `NaN` for `NaN`; exactly 1 at 0.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // x = n·ln 2 + r with |r| ≤ ln 2 / 2; ln 2 is split in two so that r keeps its low bits (Cody and Waite).
    let low = s.splat(if S::SCALES_FREELY { -105.0 } else { -87.3 });
    let high = s.splat(if S::SCALES_FREELY { 89.0 } else { 88.7 });
    let held = s.max(low, s.min(high, x));
    let n = s.round(s.mul(held, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), held);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    // Minimax polynomial of (e^r − 1 − r)/r² on that interval (Cephes' expf).
    let mut p = s.splat(1.987_569_1e-4);
    p = s.fma(p, r, s.splat(1.398_2e-3));
    p = s.fma(p, r, s.splat(8.333_452e-3));
    p = s.fma(p, r, s.splat(4.166_579_6e-2));
    p = s.fma(p, r, s.splat(1.666_666_5e-1));
    p = s.fma(p, r, s.splat(0.5));
    let y = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    if S::SCALES_FREELY {
        return s.scale2(y, n);
    }
    // 2^n in two halves: n = 128 would leave the exponent's range.
    let half = s.round(s.mul(n, s.splat(0.5)));
    let y = s.scale2(s.scale2(y, half), s.sub(n, half));
    let y = s.select(s.lt(x, low), s.splat(0.0), y);
    s.select(s.lt(high, x), s.splat(f32::INFINITY), y)
}

/// The tanh form of gelu, `0.5·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, as `x / (1 + e^(−2u))`, which is the same and
/// does not cancel for negative x.
#[inline(always)]
pub(super) fn gelu<S: Simd>(s: S, x: S::V) -> S::V {
    let cube = s.mul(s.mul(x, x), x);
    let u = s.fma(cube, s.splat(0.044_715), x);
    // √(2/π)·2
    let e = exp(s, s.mul(u, s.splat(-1.595_769)));
    s.div(x, s.add(s.splat(1.0), e))
}

/// `cap·tanh(x / cap)`, as `cap − 2·cap/(e^(2x/cap) + 1)`: exact to some 1e-7·cap, for which `model` bounds
/// the cap.
#[inline(always)]
pub(super) fn softcap<S: Simd>(s: S, x: S::V, cap: f32) -> S::V {
    let e = exp(s, s.mul(x, s.splat(2.0 / cap)));
    s.sub(s.splat(cap), s.div(s.splat(2.0 * cap), s.add(e, s.splat(1.0))))
}
