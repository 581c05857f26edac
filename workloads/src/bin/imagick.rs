//! Image operations: blur, unsharp mask, edges, resize, colours. Follows 538.imagick_r.
//!
//! As there: images of 16-bit pixels, each operation a pass with a kernel in floating point that makes a new image. Its behaviour: regular
//! loops, a multiply and an add for each weight and channel, conversions between integers and doubles, clamping; good
//! locality, few misses for its arithmetic.
//!
//! What differs: the image is generated, three channels, no file formats; the operations are those of SPEC's command line in kind
//! (`-edge`, `-resize`, `-blur`, `-modulate`), written anew.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values, cos_sin, exp};

const GUEST: Guest = Guest {
    name: "imagick",
    about: "Blurs, sharpens, finds edges, resizes and recolours a generated image.",
    params: &[
        Param {
            name: "width",
            what: "pixels in a row; three quarters as many rows",
            values: [160, 640, 1920],
            limits: (16, 20_000),
        },
        Param {
            name: "radius",
            what: "pixels of the blur's kernel to each side",
            values: [4, 5, 6],
            limits: (1, 100),
        },
        Param {
            name: "seed",
            what: "seed of the image",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

const MAX: f64 = 65535.0;

type Pixel = [u16; 3];

#[derive(Clone, PartialEq)]
struct Image {
    width: usize,
    height: usize,
    pixels: Vec<Pixel>,
}

#[inline]
fn quantum(v: f64) -> u16 {
    if v <= 0.0 {
        0
    } else if v >= MAX {
        65535
    } else {
        (v + 0.5) as u16
    }
}

impl Image {
    fn new(width: usize, height: usize, pixel: impl FnMut(usize) -> Pixel) -> Self {
        Self {
            width,
            height,
            pixels: (0..width * height).map(pixel).collect(),
        }
    }

    /// Waves, discs and grain.
    fn generate(width: usize, height: usize, random: &mut Random) -> Self {
        let discs: Vec<(f64, f64, f64, Pixel)> = (0..24)
            .map(|_| {
                let mut part = || random.unit();
                let (x, y, r) = (
                    part() * width as f64,
                    part() * height as f64,
                    part() * width as f64 / 8.0,
                );
                let colour = [0; 3].map(|_: i32| quantum(part() * MAX));
                (x, y, r * r, colour)
            })
            .collect();
        Self::new(width, height, |at| {
            let (x, y) = ((at % width) as f64, (at / width) as f64);
            let wave = cos_sin(x * 0.05).1 * cos_sin(y * 0.07).0;
            let mut pixel = [wave, -wave, wave * wave].map(|w| (0.5 + 0.3 * w) * MAX);
            for (dx, dy, r2, colour) in &discs {
                if (x - dx) * (x - dx) + (y - dy) * (y - dy) < *r2 {
                    pixel = colour.map(f64::from);
                }
            }
            let grain = (random.unit() - 0.5) * 3000.0;
            pixel.map(|p| quantum(p + grain))
        })
    }

    /// Each pixel becomes the weighted sum of those around it; beyond an edge is the edge.
    fn convolve(&self, radius: usize, kernel: &[f64]) -> Self {
        let edge = 2 * radius + 1;
        let clamp = |v: usize, by: usize, n: usize| (v + by).saturating_sub(radius).min(n - 1);
        Self::new(self.width, self.height, |at| {
            let (x, y) = (at % self.width, at / self.width);
            let mut sum = [0.0; 3];
            let inner = x >= radius && x + radius < self.width;
            for ky in 0..edge {
                let row = &self.pixels[clamp(y, ky, self.height) * self.width..][..self.width];
                let weights = &kernel[ky * edge..][..edge];
                if inner {
                    for (pixel, w) in row[x - radius..=x + radius].iter().zip(weights) {
                        for (s, p) in sum.iter_mut().zip(pixel) {
                            *s += f64::from(*p) * w;
                        }
                    }
                } else {
                    for (kx, w) in weights.iter().enumerate() {
                        for (s, p) in sum.iter_mut().zip(&row[clamp(x, kx, self.width)]) {
                            *s += f64::from(*p) * w;
                        }
                    }
                }
            }
            sum.map(quantum)
        })
    }

    /// Two images pixel by pixel.
    fn with(&self, other: &Self, mix: impl Fn(f64, f64) -> f64) -> Self {
        let (a, b) = (&self.pixels, &other.pixels);
        Self::new(self.width, self.height, |at| {
            std::array::from_fn(|c| quantum(mix(f64::from(a[at][c]), f64::from(b[at][c]))))
        })
    }

    /// Rows to another width, by Lanczos' filter.
    fn stretch(&self, width: usize) -> Self {
        let scale = self.width as f64 / width as f64;
        let wide = if scale > 1.0 { scale } else { 1.0 };
        // For each new column the first old one, and weights that come to 1.
        let columns: Vec<(usize, Vec<f64>)> = (0..width)
            .map(|x| {
                let centre = (x as f64 + 0.5) * scale - 0.5;
                let first = (centre - 3.0 * wide) as i64;
                let last = (centre + 3.0 * wide) as i64 + 1;
                let first = first.clamp(0, self.width as i64 - 1) as usize;
                let last = last.clamp(0, self.width as i64 - 1) as usize;
                let weights: Vec<f64> = (first..=last)
                    .map(|i| lanczos((i as f64 - centre) / wide))
                    .collect();
                let sum: f64 = weights.iter().sum();
                (first, weights.iter().map(|w| w / sum).collect())
            })
            .collect();
        Self::new(width, self.height, |at| {
            let (first, weights) = &columns[at % width];
            let row = &self.pixels[at / width * self.width + first..][..weights.len()];
            let mut sum = [0.0; 3];
            for (pixel, w) in row.iter().zip(weights) {
                for (s, p) in sum.iter_mut().zip(pixel) {
                    *s += f64::from(*p) * w;
                }
            }
            sum.map(quantum)
        })
    }

    fn turned(&self) -> Self {
        Self::new(self.height, self.width, |at| {
            self.pixels[at % self.height * self.width + at / self.height]
        })
    }

    fn resize(&self, width: usize, height: usize) -> Self {
        self.stretch(width).turned().stretch(height).turned()
    }

    /// Brightness, saturation and hue, by way of HSL.
    fn modulate(&self, brightness: f64, saturation: f64, hue: f64) -> Self {
        Self::new(self.width, self.height, |at| {
            let [r, g, b] = self.pixels[at].map(|p| f64::from(p) / MAX);
            let high = if r > g {
                if r > b { r } else { b }
            } else if g > b {
                g
            } else {
                b
            };
            let low = if r < g {
                if r < b { r } else { b }
            } else if g < b {
                g
            } else {
                b
            };
            let (range, light) = (high - low, 0.5 * (high + low) * brightness);
            let mut h = if range == 0.0 {
                0.0
            } else if high == r {
                (g - b) / range + if g < b { 6.0 } else { 0.0 }
            } else if high == g {
                (b - r) / range + 2.0
            } else {
                (r - g) / range + 4.0
            };
            h += hue;
            if h >= 6.0 {
                h -= 6.0;
            }
            let chroma = range * saturation;
            let part = h - (h as i64 / 2 * 2) as f64 - 1.0;
            let x = chroma * (1.0 - if part < 0.0 { -part } else { part });
            let base = light - 0.5 * chroma;
            let [r, g, b] = match h as i64 {
                0 => [chroma, x, 0.0],
                1 => [x, chroma, 0.0],
                2 => [0.0, chroma, x],
                3 => [0.0, x, chroma],
                4 => [x, 0.0, chroma],
                _ => [chroma, 0.0, x],
            };
            [r, g, b].map(|v| quantum((v + base) * MAX))
        })
    }

    fn mean(&self) -> f64 {
        let sum: u64 = self.pixels.iter().flatten().map(|p| u64::from(*p)).sum();
        sum as f64 / (3 * self.pixels.len()) as f64
    }
}

fn lanczos(x: f64) -> f64 {
    let x = if x < 0.0 { -x } else { x };
    let sinc = |v: f64| if v < 1e-9 { 1.0 } else { cos_sin(v).1 / v };
    if x >= 3.0 {
        return 0.0;
    }
    let angle = x * std::f64::consts::PI;
    sinc(angle) * sinc(angle / 3.0)
}

fn gauss(radius: usize) -> Vec<f64> {
    let (edge, sigma) = (2 * radius + 1, radius as f64 / 2.5);
    let square = |v: usize| (v as f64 - radius as f64) * (v as f64 - radius as f64);
    let weight = |n: usize| exp(-(square(n % edge) + square(n / edge)) / (2.0 * sigma * sigma));
    let weights: Vec<f64> = (0..edge * edge).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (width, radius) = (values.size("width"), values.size("radius"));
    let height = width * 3 / 4;
    let image = Image::generate(width, height, &mut Random::new(values.get("seed")));
    let kernel = gauss(radius);
    let blurred = image.convolve(radius, &kernel);
    let sharp = image.with(&blurred, |a, b| a + 0.7 * (a - b));
    let edges = sharp.convolve(1, &[-1.0, -1.0, -1.0, -1.0, 8.0, -1.0, -1.0, -1.0, -1.0]);
    let small = sharp.resize(width * 5 / 8, height * 5 / 8);
    let back = small.resize(width, height);
    let vivid = back.modulate(1.0, 1.3, 0.4);
    let out = vivid.with(&edges, |a, b| 0.9 * a + 0.1 * b);
    // What the operations keep.
    let flat = Image::new(40, 30, |_| [10_000, 20_000, 50_000]);
    if flat.convolve(radius, &kernel) != flat || flat.resize(64, 48).resize(40, 30) != flat {
        return Err("a flat image does not stay flat".to_owned());
    }
    let same = image.resize(width, height);
    let off = same.with(&image, |a, b| (a - b) * (a - b)).mean();
    if off > 1.0 {
        return Err(format!(
            "resized to its own size, the image changes by {off}"
        ));
    }
    let (before, after) = (image.mean(), blurred.mean());
    if (before - after).abs() > 0.01 * MAX {
        return Err(format!(
            "blurring changed the mean from {before} to {after}"
        ));
    }
    let mut sum = Sum::default();
    out.pixels
        .iter()
        .flatten()
        .for_each(|p| sum.add(u64::from(*p)));
    Ok(format!(
        "{width} x {height} pixels, kernel of {} x {}\nmeans {before:.4} {after:.4} {:.4} {:.4}\nimage {sum}",
        2 * radius + 1,
        2 * radius + 1,
        edges.mean(),
        out.mean()
    ))
}
