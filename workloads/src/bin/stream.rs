//! STREAM's four kernels (McCalpin): copy, scale, add and triad over three arrays of doubles that no cache holds.
//!
//! `stream [MIB] [ROUNDS]`: sequential loads and stores, nothing to predict, bound by bandwidth. Every element
//! is checked against the same steps done on one number, as STREAM itself does. Its copy is a call of memcpy here, as it is where
//! a C compiler recognises the loop.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Sum, Values};

const GUEST: Guest = Guest {
    name: "stream",
    about: "STREAM: copy, scale, add and triad over three arrays of doubles.",
    params: &[
        Param {
            name: "mib",
            what: "MiB of each of three arrays",
            values: [2, 16, 96],
            limits: (1, 65536),
        },
        Param {
            name: "rounds",
            what: "rounds of the four kernels",
            values: [8, 8, 20],
            limits: (1, 1 << 20),
        },
    ],
};

/// What scale and triad multiply with: STREAM's 3 would overflow after some hundred rounds. With this one a stays near 1.
const SCALAR: f64 = 0.414_062_5;

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let (mib, rounds) = (values.size("mib"), values.get("rounds"));
    let n = (mib << 20) / 8;
    let (mut a, mut b, mut c) = (vec![1.0f64; n], vec![2.0f64; n], vec![0.0f64; n]);
    // One element beside the arrays: what each of theirs must become.
    let (mut ea, mut eb, mut ec) = (1.0f64, 2.0f64, 0.0f64);
    for _ in 0..rounds {
        copy(&mut c, &a);
        scale(&mut b, &c);
        add(&mut c, &a, &b);
        triad(&mut a, &b, &c);
        ec = ea;
        eb = SCALAR * ec;
        ec = ea + eb;
        ea = eb + SCALAR * ec;
    }
    let mut sum = Sum::default();
    for (name, array, expected) in [("a", &a, ea), ("b", &b, eb), ("c", &c, ec)] {
        if let Some(at) = array
            .iter()
            .position(|v| (v / expected - 1.0).abs() > 1e-12)
        {
            return Err(format!("{name}[{at}] is {}, not {expected}", array[at]));
        }
        sum.add_f64(array[n / 2]);
    }
    Ok(format!(
        "3 x {mib} MiB, {rounds} rounds: a = {:.9e}, {sum}",
        a[0]
    ))
}

#[inline(never)]
fn copy(to: &mut [f64], from: &[f64]) {
    to.copy_from_slice(from);
}

#[inline(never)]
fn scale(to: &mut [f64], from: &[f64]) {
    for (t, f) in to.iter_mut().zip(from) {
        *t = SCALAR * f;
    }
}

#[inline(never)]
fn add(to: &mut [f64], x: &[f64], y: &[f64]) {
    for ((t, x), y) in to.iter_mut().zip(x).zip(y) {
        *t = x + y;
    }
}

#[inline(never)]
fn triad(to: &mut [f64], x: &[f64], y: &[f64]) {
    for ((t, x), y) in to.iter_mut().zip(x).zip(y) {
        *t = x + SCALAR * y;
    }
}
