//! Attention: masks, pages, chunks and company.

use super::{precision::rounding, *};

/// A request of the test: what was encoded, and the rows to attend.
struct Request {
    sight: Sight,
    prefix: usize,
    rows: usize,
}

struct Case {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    window: Option<usize>,
    element: KvElement,
    requests: Vec<Request>,
    /// Per request: keys and values of the prefix and of its own rows, `[positions, kv_heads, dim]`, and queries.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    queries: Vec<Vec<f32>>,
}

impl Case {
    fn new(shape: (usize, usize, usize), window: Option<usize>, element: KvElement, requests: Vec<Request>) -> Case {
        let (heads, kv_heads, dim) = shape;
        let mut numbers = Numbers::new((heads * dim + requests.len()) as u64);
        let mut tensor = |rows: usize, heads: usize| {
            let values = numbers.vector(rows * heads * dim);
            // bf16 pages round: numbers that survive it keep the reference simple.
            values.iter().map(|x| half::bf16::from_f32(x * 1.5).to_f32()).collect::<Vec<_>>()
        };
        let keys = requests.iter().map(|r| tensor(r.prefix + r.rows, kv_heads)).collect();
        let values = requests.iter().map(|r| tensor(r.prefix + r.rows, kv_heads)).collect();
        let queries = requests.iter().map(|r| tensor(r.rows, heads)).collect();
        Case { heads, kv_heads, dim, window, element, requests, keys, values, queries }
    }

    /// The attended rows of the requests named, run as one pass in that order.
    fn run(&self, cpu: &Cpu, which: &[usize]) -> Vec<Vec<f32>> {
        let width = self.kv_heads * self.dim;
        let mut pool = KvPool::new(self.element, 64, self.kv_heads, self.dim);
        let (mut q, mut k, mut v) = (vec![], vec![], vec![]);
        let (mut tables, mut spans) = (vec![], vec![]);
        // Pages in a scattered order; pages before the window are not there.
        let mut next = 63;
        for &i in which {
            let request = &self.requests[i];
            let from = match (self.window, request.sight) {
                (None, _) => 0,
                (Some(window), _) => (request.prefix + 1).saturating_sub(window) / PAGE_TOKENS * PAGE_TOKENS,
            };
            let count = (request.prefix + request.rows - from).div_ceil(PAGE_TOKENS);
            let pages: Vec<u32> = (0..count)
                .map(|_| {
                    next -= 1;
                    next
                })
                .collect();
            tables.push((pages, from));
        }
        for (&i, (pages, from)) in which.iter().zip(&tables) {
            let request = &self.requests[i];
            let (row, prefix) = (q.len() / (self.heads * self.dim), request.prefix);
            let written = prefix + if request.sight == Sight::Encode { request.rows } else { 0 };
            let write = KvWrite { row: 0, rows: written - from, position: *from, pages, from: *from };
            let (keys, values) = (&self.keys[i], &self.values[i]);
            cpu.write(
                &mut pool,
                &keys[from * width..written * width],
                &values[from * width..written * width],
                &[write],
            )
            .unwrap();
            q.extend_from_slice(&self.queries[i]);
            k.extend_from_slice(&keys[prefix * width..]);
            v.extend_from_slice(&values[prefix * width..]);
            spans.push(Span { row, rows: request.rows, sight: request.sight, prefix, pages, from: *from });
        }
        let mut out = vec![f32::NAN; q.len()];
        let attention = Attention { heads: self.heads, window: self.window, spans: &spans };
        cpu.attend(attention, &q, &k, &v, &pool, &mut out).unwrap();
        spans
            .iter()
            .map(|span| out[span.row * self.heads * self.dim..][..span.rows * self.heads * self.dim].to_vec())
            .collect()
    }

    fn reference(&self, i: usize) -> Vec<f64> {
        let request = &self.requests[i];
        let mut out = Vec::new();
        for row in 0..request.rows {
            let p = request.prefix + row;
            let seen: Vec<usize> = (0..request.prefix + request.rows)
                .filter(|&t| match (request.sight, self.window) {
                    (Sight::Encode, None) => t <= p,
                    (Sight::Encode, Some(w)) => t <= p && t + w > p,
                    (Sight::Denoise, None) => true,
                    (Sight::Denoise, Some(w)) => t >= request.prefix || t + (w - 1) >= request.prefix,
                })
                .collect();
            for head in 0..self.heads {
                let kv = head / (self.heads / self.kv_heads);
                let q = &self.queries[i][(row * self.heads + head) * self.dim..][..self.dim];
                let at = |t: usize| (t * self.kv_heads + kv) * self.dim..(t * self.kv_heads + kv + 1) * self.dim;
                let scores: Vec<f64> = seen.iter().map(|&t| dot(q, &self.keys[i][at(t)])).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                out.extend((0..self.dim).map(|d| {
                    let values = seen.iter().map(|&t| f64::from(self.values[i][at(t)][d]));
                    values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / sum
                }));
            }
        }
        out
    }
}

fn encode(prefix: usize, rows: usize) -> Request {
    Request { sight: Sight::Encode, prefix, rows }
}

fn denoise(prefix: usize, rows: usize) -> Request {
    Request { sight: Sight::Denoise, prefix, rows }
}

#[test]
fn attention_agrees_with_the_reference() {
    for (shape, window) in [
        ((4, 2, 16), None),
        ((4, 2, 16), Some(8)),
        ((2, 2, 40), Some(70)),
        ((8, 1, 32), None),
        ((3, 1, 20), Some(64)),
        ((1, 1, 512), Some(100)),
    ] {
        let requests =
            vec![encode(0, 70), denoise(0, 16), denoise(130, 33), encode(65, 40), denoise(64, 1), encode(63, 1)];
        for element in [KvElement::F32, KvElement::Bf16] {
            let case = Case::new(shape, window, element, requests_like(&requests));
            for cpu in cpus(2).into_iter().chain(rounding(2)) {
                let found = case.run(&cpu, &[0, 1, 2, 3, 4, 5]);
                // What is given are bf16 numbers up to 1.5 already: probabilities alone are rounded.
                let tolerance = if cpu.precision() == Precision::Exact { 1e-5 } else { 1.5 / 256.0 };
                for (i, found) in found.iter().enumerate() {
                    close(found, &case.reference(i), tolerance);
                }
            }
        }
    }
}

fn requests_like(requests: &[Request]) -> Vec<Request> {
    requests.iter().map(|r| Request { sight: r.sight, prefix: r.prefix, rows: r.rows }).collect()
}

#[test]
fn spans_do_not_depend_on_their_company_or_the_threads() {
    let requests = vec![encode(0, 90), denoise(100, 32), encode(50, 20), denoise(0, 32)];
    for window in [None, Some(48)] {
        let case = Case::new((4, 2, 32), window, KvElement::Bf16, requests_like(&requests));
        let machines = |threads| cpus(threads).into_iter().chain(rounding(threads));
        for (cpu, others) in machines(1).zip(machines(2).zip(machines(3))) {
            let all = case.run(&cpu, &[0, 1, 2, 3]);
            for cpu in [others.0, others.1] {
                let turned = case.run(&cpu, &[3, 1, 0, 2]);
                for (at, i) in [3, 1, 0, 2].into_iter().enumerate() {
                    same_bits(&all[i], &turned[at]);
                    same_bits(&all[i], &case.run(&cpu, &[i])[0]);
                }
            }
        }
    }
}

#[test]
fn a_prompt_may_be_encoded_in_pieces() {
    let (whole, cut) = (150, 90);
    for window in [None, Some(40)] {
        let mut case = Case::new((4, 2, 16), window, KvElement::F32, vec![encode(0, whole)]);
        // The second piece alone: same keys, the first rows as prefix.
        case.requests.push(encode(cut, whole - cut));
        case.keys.push(case.keys[0].clone());
        case.values.push(case.values[0].clone());
        case.queries.push(case.queries[0][cut * 4 * 16..].to_vec());
        for cpu in cpus(2).into_iter().chain(rounding(2)) {
            let found = case.run(&cpu, &[0, 1]);
            same_bits(&found[0][cut * 4 * 16..], &found[1]);
        }
    }
}

#[test]
fn what_was_written_can_be_read() {
    let cpu = Cpu::new(2, None).unwrap();
    let (heads, dim) = (2, 12);
    let (k, v) = (Numbers::new(5).vector(3 * heads * dim), Numbers::new(6).vector(3 * heads * dim));
    for element in [KvElement::F32, KvElement::Bf16] {
        let mut pool = KvPool::new(element, 4, heads, dim);
        let write = KvWrite { row: 0, rows: 3, position: 191, pages: &[3, 1], from: 128 };
        cpu.write(&mut pool, &k, &v, &[write]).unwrap();
        let round = |x: f32| if element == KvElement::F32 { x } else { half::bf16::from_f32(x).to_f32() };
        let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
        for (i, (page, offset)) in [(3, 63), (1, 0), (1, 1)].into_iter().enumerate() {
            for head in 0..heads {
                pool.read(page, offset, head, &mut key, &mut value).unwrap();
                let at = (i * heads + head) * dim;
                assert!(key.iter().zip(&k[at..]).all(|(a, b)| *a == round(*b)));
                assert!(value.iter().zip(&v[at..]).all(|(a, b)| *a == round(*b)));
            }
        }
        // 64 keys of 12 numbers and 64 values of 16, their width rounded up to a vector's, for each of two heads.
        let numbers = 2 * 64 * (12 + 16);
        let bytes = if element == KvElement::F32 { 4 * numbers } else { 2 * numbers };
        assert_eq!(KvPool::page_bytes(element, heads, dim), bytes);
    }
}

#[test]
fn wrong_spans_are_errors() {
    let cpu = Cpu::new(1, None).unwrap();
    let mut pool = KvPool::new(KvElement::F32, 2, 1, 16);
    let x = [0.0; 64];
    let mut out = [0.0; 64];
    let good = Span { row: 0, rows: 4, sight: Sight::Encode, prefix: 60, pages: &[0], from: 0 };
    let mut run = |span: Span<'_>, window| {
        cpu.attend(Attention { heads: 1, window, spans: &[span] }, &x, &x, &x, &pool, &mut out)
    };
    assert!(run(good, None).is_ok());
    assert!(run(Span { rows: 5, ..good }, None).is_err());
    assert!(run(Span { prefix: 61, ..good }, None).is_err());
    assert!(run(Span { pages: &[2], ..good }, None).is_err());
    assert!(run(Span { from: 64, ..good }, None).is_err());
    assert!(run(Span { from: 32, ..good }, None).is_err());
    assert!(run(Span { prefix: 68, from: 64, ..good }, Some(8)).is_err());
    assert!(run(Span { prefix: 72, from: 64, ..good }, Some(8)).is_ok());
    assert!(run(Span { row: usize::MAX, ..good }, None).is_err());
    assert!(run(Span { prefix: usize::MAX, ..good }, None).is_err());
    let write = KvWrite { row: 0, rows: 4, position: 62, pages: &[0], from: 0 };
    assert!(cpu.write(&mut pool, &x, &x, &[write]).is_err());
}

#[test]
fn no_row_belongs_to_two_spans() {
    let cpu = Cpu::new(2, None).unwrap();
    let pool = KvPool::new(KvElement::F32, 1, 1, 16);
    let x = [0.0; 64];
    let mut out = [0.0; 64];
    let span = |row, rows| Span { row, rows, sight: Sight::Denoise, prefix: 0, pages: &[0], from: 0 };
    let mut run =
        |spans: &[Span<'_>]| cpu.attend(Attention { heads: 1, window: None, spans }, &x, &x, &x, &pool, &mut out);
    for good in [[span(2, 2), span(0, 2)], [span(1, 3), span(2, 0)], [span(0, 1), span(3, 1)]] {
        assert!(run(&good).is_ok(), "{good:?}");
    }
    for bad in [[span(2, 2), span(0, 3)], [span(0, 4), span(1, 1)], [span(1, 1), span(1, 1)]] {
        assert!(run(&bad).is_err(), "{bad:?}");
    }
}
