//! Fused rows against the same steps one after the other in f64, and against the single operations bit for bit.

use super::*;

fn norm(x: &[f32], weight: Option<&[f32]>) -> Vec<f64> {
    let factor = 1.0 / (dot(x, x) / x.len() as f64 + 1e-6).sqrt();
    x.iter().enumerate().map(|(i, &x)| f64::from(x) * factor * weight.map_or(1.0, |w| f64::from(w[i]))).collect()
}

/// The rotation as it is defined, in place: with halves `x₁, x₂` of a head, pair j turns by `position · frequencies[j]`.
fn turn(x: &mut [f32], heads: usize, positions: &[u32], frequencies: &[f32]) {
    let half = frequencies.len();
    for (row, position) in x.chunks_exact_mut(heads * 2 * half).zip(positions) {
        for head in row.chunks_exact_mut(2 * half) {
            for (j, frequency) in frequencies.iter().enumerate() {
                let (sin, cos) = (*position as f32 * frequency).sin_cos();
                let (a, b) = (head[j], head[j + half]);
                head[j] = a * cos - b * sin;
                head[j + half] = b * cos + a * sin;
            }
        }
    }
}

#[test]
fn several_norms_are_the_single_ones() {
    let mut numbers = Numbers::new(11);
    for cpu in cpus(2) {
        for (rows, width) in [(1, 1), (5, 37), (70, 704)] {
            let (x, first, second) = (numbers.vector(rows * width), numbers.vector(width), numbers.vector(width));
            let mut outs = [vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; x.len()]];
            let weights = [Some(&first[..]), None, Some(&second[..])];
            cpu.rms_norms(&x, width, weights, 1e-6, outs.each_mut().map(|out| &mut out[..])).unwrap();
            for (weight, out) in weights.iter().zip(&outs) {
                let mut single = vec![0.0; x.len()];
                cpu.rms_norm(&x, width, *weight, 1e-6, &mut single).unwrap();
                assert_eq!(&single, out);
            }
        }
    }
}

#[test]
fn a_layers_end_is_its_steps_in_any_company() {
    let mut numbers = Numbers::new(12);
    for cpu in cpus(3) {
        for (rows, width) in [(1, 5), (9, 64), (60, 1100)] {
            let all: Vec<Vec<f32>> = (0..3).map(|_| numbers.vector(rows * width)).collect();
            let weights: Vec<Vec<f32>> = (0..3).map(|_| numbers.vector(width)).collect();
            for mixture in [None, Some((&all[2][..], &weights[1][..], &weights[2][..]))] {
                let end = LayerEnd {
                    stream: &all[0],
                    dense: &all[1],
                    mixture,
                    weight: &weights[0],
                    eps: 1e-6,
                    scalars: (0.5, 1.25),
                    split: rows / 2,
                };
                let mut out = vec![0.0; rows * width];
                cpu.layer_end(end, &mut out).unwrap();
                for row in 0..rows {
                    let part = row * width..(row + 1) * width;
                    let sum: Vec<f32> = match mixture {
                        None => all[1][part.clone()].to_vec(),
                        Some((mixture, first, second)) => {
                            let (a, b) =
                                (norm(&all[1][part.clone()], Some(first)), norm(&mixture[part.clone()], Some(second)));
                            a.iter().zip(b).map(|(a, b)| (a + b) as f32).collect()
                        }
                    };
                    let scalar = if row < rows / 2 { 0.5 } else { 1.25 };
                    let normed = norm(&sum, Some(&weights[0]));
                    let wanted: Vec<f64> =
                        all[0][part.clone()].iter().zip(normed).map(|(&x, y)| (f64::from(x) + y) * scalar).collect();
                    close(&out[part.clone()], &wanted, 4e-6);
                    // Alone, the row has the same bits.
                    let alone = LayerEnd {
                        stream: &all[0][part.clone()],
                        dense: &all[1][part.clone()],
                        mixture: mixture.map(|(mixture, first, second)| (&mixture[part.clone()], first, second)),
                        split: usize::from(row < rows / 2),
                        ..end
                    };
                    let mut single = vec![0.0; width];
                    cpu.layer_end(alone, &mut single).unwrap();
                    assert_eq!(single, out[part]);
                }
            }
        }
    }
}

#[test]
fn a_normed_residual_is_added() {
    let mut numbers = Numbers::new(13);
    for cpu in cpus(2) {
        let (rows, width) = (40, 130);
        let (stream, x, weight) = (numbers.vector(rows * width), numbers.vector(rows * width), numbers.vector(width));
        let mut out = vec![0.0; rows * width];
        cpu.add_norm(&stream, &x, &weight, 1e-6, &mut out).unwrap();
        for (row, out) in out.chunks(width).enumerate() {
            let normed = norm(&x[row * width..][..width], Some(&weight));
            let wanted: Vec<f64> =
                stream[row * width..][..width].iter().zip(normed).map(|(&x, y)| f64::from(x) + y).collect();
            close(out, &wanted, 4e-6);
        }
    }
}

#[test]
fn normed_and_turned_heads_are_the_two_steps() {
    let mut numbers = Numbers::new(14);
    for cpu in cpus(2) {
        for (rows, heads, half) in [(1, 1, 3), (7, 3, 16), (50, 4, 40)] {
            let x = numbers.vector(rows * heads * half * 2);
            let weight = numbers.vector(half * 2);
            let positions: Vec<u32> = (0..rows as u32).map(|row| 100 + row * 37).collect();
            let mut frequencies: Vec<f32> = (0..half).map(|j| 10000f32.powf(-(j as f32) / half as f32)).collect();
            frequencies[half - 1] = 0.0;
            let angles = positions.iter().flat_map(|&p| frequencies.iter().map(move |f| (p as f32 * f).sin_cos()));
            let (sin, cos): (Vec<f32>, Vec<f32>) = angles.unzip();
            let mut normed = vec![0.0; x.len()];
            cpu.rms_norm(&x, half * 2, Some(&weight), 1e-6, &mut normed).unwrap();
            let mut wanted = normed.clone();
            turn(&mut wanted, heads, &positions, &frequencies);
            let mut out = vec![0.0; x.len()];
            cpu.norm_rope(&x, half * 2, Some(&weight), 1e-6, (&cos, &sin), &mut out).unwrap();
            assert_eq!(out, wanted);
            for (h, (x, y)) in normed.chunks(2 * half).zip(out.chunks(2 * half)).enumerate() {
                for j in 0..half {
                    let angle = f64::from(positions[h / heads] as f32 * frequencies[j]);
                    let (a, b) = (f64::from(x[j]), f64::from(x[j + half]));
                    close(&[y[j]], &[a * angle.cos() - b * angle.sin()], 1e-6);
                    close(&[y[j + half]], &[b * angle.cos() + a * angle.sin()], 1e-6);
                }
                // A pair of frequency zero stays as it is, to the bit.
                same_bits(&[x[half - 1], x[2 * half - 1]], &[y[half - 1], y[2 * half - 1]]);
            }
        }
    }
}

#[test]
fn rows_of_the_table_are_looked_up_and_scaled() {
    let mut numbers = Numbers::new(15);
    for cpu in cpus(2) {
        let (entries, width) = (50, 96);
        let values = numbers.vector(entries * width);
        let table = plain(&cpu, entries, width, &values);
        let tokens = [3u32, 49, 0, 3];
        let mut out = vec![0.0; tokens.len() * width];
        cpu.embed(&table, &tokens, 2.0, &mut out).unwrap();
        for (token, row) in tokens.iter().zip(out.chunks(width)) {
            let wanted: Vec<f32> = values[*token as usize * width..][..width].iter().map(|x| x * 2.0).collect();
            assert_eq!(row, wanted);
        }
        assert!(cpu.embed(&table, &[50], 2.0, &mut out[..width]).is_err());
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for cpu in cpus(1) {
        let mut out = vec![0.0; 8];
        assert!(cpu.add_norm(&[0.0; 8], &[0.0; 8], &[1.0; 3], 1e-6, &mut out).is_err());
        assert!(cpu.rms_norms(&[0.0; 8], 4, [Some(&[1.0; 3][..])], 1e-6, [&mut out]).is_err());
        assert!(cpu.norm_rope(&[0.0; 8], 3, None, 1e-6, (&[0.0; 2], &[0.0; 2]), &mut out).is_err());
        assert!(cpu.norm_rope(&[0.0; 8], 4, None, 1e-6, (&[0.0; 6], &[0.0; 6]), &mut out).is_err());
        let end = LayerEnd {
            stream: &[0.0; 8],
            dense: &[0.0; 4],
            mixture: None,
            weight: &[1.0; 4],
            eps: 1e-6,
            scalars: (1.0, 1.0),
            split: 0,
        };
        assert!(cpu.layer_end(end, &mut out).is_err());
    }
}
