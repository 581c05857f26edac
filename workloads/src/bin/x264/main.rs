//! A video encoder: motion estimation by differences, transforms, quantisation, reconstruction. Follows 525.x264_r.
//!
//! As there: blocks of 16 by 16 pixels are looked for in the frame before by hexagon search over sums of absolute differences (SAD),
//! refined to half pixels with sums of transformed differences (SATD); what is left is transformed in blocks of 4 by 4, quantised,
//! written as exponential Golomb codes, and reconstructed for the next frame. Its behaviour: dense 8-bit arithmetic over small blocks at
//! data-dependent places, which compilers vectorise, good locality, branches that depend on the video.
//!
//! What differs: luma only, one reference frame, no B frames, no arithmetic coder, no deblocking, no rate control; a moving
//! scene is generated; C and assembly are Rust that the compiler vectorises with SSE2.

mod block;
mod encode;
mod motion;
mod video;

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values, ln};

const GUEST: Guest = Guest {
    name: "x264",
    about: "Encodes a generated video: motion search, transform, quantisation, reconstruction.",
    params: &[
        Param {
            name: "width",
            what: "pixels in a row, a multiple of 16; about three quarters as many rows",
            values: [128, 320, 768],
            limits: (64, 8192),
        },
        Param {
            name: "frames",
            what: "frames",
            values: [4, 16, 40],
            limits: (2, 100_000),
        },
        Param {
            name: "quantiser",
            what: "step of quantisation",
            values: [20, 20, 20],
            limits: (1, 200),
        },
        Param {
            name: "seed",
            what: "seed of the scene",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let width = values.size("width") / 16 * 16;
    let height = width * 3 / 64 * 16;
    let scene = video::Scene::new(values.get("seed"));
    let mut encoder = encode::Encoder::new(width, height, values.get("quantiser") as i32);
    let mut error = 0u64;
    for n in 0..values.size("frames") {
        let frame = scene.frame(width, height, n);
        error += encoder.frame(&frame, n == 0);
    }
    let pixels = (width * height) as u64 * values.get("frames");
    let mse = error as f64 / pixels as f64;
    let quality = 10.0 * ln(65025.0 / mse.max(1e-9)) / std::f64::consts::LN_10;
    // A uniform quantiser with dead zone is off by less than its step; what is coded must resemble the source.
    let worst = values.get("quantiser") as f64;
    if mse > worst * worst {
        return Err(format!("a mean square error of {mse}"));
    }
    let counts = &encoder.counts;
    if counts.inter == 0 || counts.moved == 0 {
        return Err("nothing was found in the frame before".to_owned());
    }
    let mut sum = Sum::default();
    sum.add_bytes(encoder.stream());
    sum.add_bytes(&encoder.last.pixels);
    Ok(format!(
        "{width} x {height}, {} frames: {} bytes\n{} blocks predicted, {} of them moved, {} not\n{} SADs, {} SATDs\nPSNR \
         {quality:.4} dB\nchecksum {sum}",
        values.get("frames"),
        encoder.stream().len(),
        counts.inter,
        counts.moved,
        counts.intra,
        counts.sads,
        counts.satds
    ))
}
