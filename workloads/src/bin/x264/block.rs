//! Blocks of 4 by 4: the integer transform of H.264, quantisation, and Hadamard's transform for costs.

pub type Block = [i32; 16];

fn columns(b: &Block, f: impl Fn([i32; 4]) -> [i32; 4]) -> Block {
    let mut out = [0; 16];
    for x in 0..4 {
        let c = f([b[x], b[4 + x], b[8 + x], b[12 + x]]);
        for y in 0..4 {
            // Transposed, so that twice is both directions.
            out[4 * x + y] = c[y];
        }
    }
    out
}

pub fn transform(b: &Block) -> Block {
    let f = |[a, b, c, d]: [i32; 4]| {
        let (s, t, u, v) = (a + d, b + c, a - d, b - c);
        [s + t, 2 * u + v, s - t, u - 2 * v]
    };
    columns(&columns(b, f), f)
}

/// Of what [`dequantise`] returns.
pub fn inverse(b: &Block) -> Block {
    let f = |[a, b, c, d]: [i32; 4]| {
        let (s, t, u, v) = (a + c, a - c, (b >> 1) - d, b + (d >> 1));
        [s + v, t + u, t - u, s - v]
    };
    columns(&columns(b, f), f).map(|v| (v + 32) >> 6)
}

/// The transform's gain for a coefficient, squared: 16, 20 or 25 of it in each direction.
fn norm(n: usize) -> i32 {
    match (n & 1, n >> 2 & 1) {
        (0, 0) => 16,
        (1, 1) => 100,
        _ => 40,
    }
}

pub fn quantise(b: &Block, step: i32) -> Block {
    // Coefficients are the orthonormal ones times the root of the norm; a third of a step rounds up.
    std::array::from_fn(|n| {
        let scale = step * root(norm(n));
        let level = (b[n].abs() * 16 + scale / 3) / scale;
        if b[n] < 0 { -level } else { level }
    })
}

/// 16 times the root of a norm, rounded.
fn root(norm: i32) -> i32 {
    match norm {
        16 => 64,
        40 => 101,
        _ => 160,
    }
}

pub fn dequantise(b: &Block, step: i32) -> Block {
    // 64 times an orthonormal coefficient, by the inverse transform's gain: 2 for even rows, the root of 2.5 for odd ones.
    std::array::from_fn(|n| {
        let level = b[n] * step;
        match norm(n) {
            16 => level * 16,
            40 => level * 1012 / 50,
            _ => level * 128 / 5,
        }
    })
}

/// Sum of absolute values after Hadamard's transform, halved.
pub fn satd(b: &Block) -> u32 {
    let f = |[a, b, c, d]: [i32; 4]| {
        let (s, t, u, v) = (a + b, a - b, c + d, c - d);
        [s + u, t + v, s - u, t - v]
    };
    let sum: i32 = columns(&columns(b, f), f).iter().map(|v| v.abs()).sum();
    sum as u32 / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use sevlab_workloads::guest::Random;

    #[test]
    fn what_is_quantised_comes_back_within_a_step() {
        let mut random = Random::new(1);
        for _ in 0..1000 {
            let b: Block = std::array::from_fn(|_| random.range(-200, 200) as i32);
            for step in [1, 5, 20] {
                let back = inverse(&dequantise(&quantise(&transform(&b), step), step));
                for (x, y) in b.iter().zip(back) {
                    assert!((x - y).abs() <= 3 * step + 2, "step {step}: {b:?} {back:?}");
                }
            }
        }
    }
}
