//! Frames, and a scene that moves.

use sevlab_workloads::guest::{Random, cos_sin};

/// Pixels beyond each side, copies of the edge.
pub const PAD: usize = 32;

/// Luma of a picture.
#[derive(Clone)]
pub struct Frame {
    pub width: usize,
    pub height: usize,
    pub stride: usize,
    pub pixels: Vec<u8>,
}

impl Frame {
    pub fn new(width: usize, height: usize) -> Self {
        let stride = width + 2 * PAD;
        Self {
            width,
            height,
            stride,
            pixels: vec![0; stride * (height + 2 * PAD)],
        }
    }

    /// Where a pixel is; up to [`PAD`] outside.
    #[inline]
    pub fn at(&self, x: isize, y: isize) -> usize {
        ((y + PAD as isize) * self.stride as isize + x + PAD as isize) as usize
    }

    /// Copies the edges outward.
    pub fn extend(&mut self) {
        for y in 0..self.height {
            let row = (y + PAD) * self.stride;
            let (first, last) = (
                self.pixels[row + PAD],
                self.pixels[row + PAD + self.width - 1],
            );
            self.pixels[row..row + PAD].fill(first);
            self.pixels[row + PAD + self.width..row + self.stride].fill(last);
        }
        let (top, bottom) = (PAD * self.stride, (PAD + self.height - 1) * self.stride);
        for y in 0..PAD {
            self.pixels
                .copy_within(top..top + self.stride, y * self.stride);
            let below = (PAD + self.height + y) * self.stride;
            self.pixels.copy_within(bottom..bottom + self.stride, below);
        }
    }
}

/// A textured background that pans, discs that fly, grain.
pub struct Scene {
    texture: Vec<u8>,
    /// Place, speed, radius, brightness.
    discs: Vec<[f64; 6]>,
    seed: u64,
}

const TILE: usize = 256;

impl Scene {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut texture = vec![0u8; TILE * TILE];
        for (n, t) in texture.iter_mut().enumerate() {
            let (x, y) = ((n % TILE) as f64, (n / TILE) as f64);
            let turn = std::f64::consts::TAU / TILE as f64;
            let wave = cos_sin(x * 5.0 * turn).1
                + cos_sin(y * 7.0 * turn).0
                + cos_sin((x + 2.0 * y) * 11.0 * turn).1;
            *t = (110.0 + 25.0 * wave + 12.0 * random.unit()) as u8;
        }
        let discs = (0..12)
            .map(|_| {
                let mut part = |low: f64, high: f64| low + (high - low) * random.unit();
                [
                    part(0.0, 1.0),
                    part(0.0, 1.0),
                    part(-4.0, 4.0),
                    part(-3.0, 3.0),
                    part(8.0, 40.0),
                    part(20.0, 235.0),
                ]
            })
            .collect();
        Self {
            texture,
            discs,
            seed,
        }
    }

    pub fn frame(&self, width: usize, height: usize, n: usize) -> Frame {
        let mut frame = Frame::new(width, height);
        let mut grain = Random::new(self.seed + 1000 + n as u64);
        for y in 0..height {
            for x in 0..width {
                let (tx, ty) = ((x + 3 * n) % TILE, (y + n) % TILE);
                let mut v = i64::from(self.texture[ty * TILE + tx]);
                for [dx, dy, vx, vy, r, light] in &self.discs {
                    let dx = x as f64 - (dx * width as f64 + vx * n as f64);
                    let dy = y as f64 - (dy * height as f64 + vy * n as f64);
                    let d2 = dx * dx + dy * dy;
                    if d2 < r * r {
                        v = (*light - 0.3 * d2 / r) as i64;
                    }
                }
                v += grain.range(-3, 3);
                let at = frame.at(x as isize, y as isize);
                frame.pixels[at] = v.clamp(0, 255) as u8;
            }
        }
        frame.extend();
        frame
    }
}
