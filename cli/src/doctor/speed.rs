//! The cipher paths of this host, measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use sevlab_memctl::cipher::{Engine, LINE, PAGE, Path, TweakTable};
use sevlab_memctl::{CipherKind, MemoryKey};

use super::{Finding, Verdict};

/// Working set: fits a second-level cache, not a first-level one.
const SET: usize = 256 << 10;
/// How long one figure is measured; the best of a few such rounds counts.
const ROUND: Duration = Duration::from_millis(15);
const ROUNDS: usize = 3;

/// One line a path, with the path in use marked, and the cost of doing without the better ones.
pub fn section() -> Vec<Finding> {
    let best = Path::detect();
    let mut out = vec![match best {
        Path::Portable => Finding::new(
            "AES-NI",
            Verdict::Costs,
            "no",
            "AES runs in software, some 20 times slower than with AES-NI; use --sev off where that matters",
        ),
        _ => Finding::new("AES-NI", Verdict::Good, "yes", ""),
    }];
    for (what, path) in [
        ("VAES, 256-bit", Path::Vaes256),
        ("VAES, 512-bit", Path::Vaes512),
    ] {
        let note = "pages are encrypted and decrypted more slowly; compare the figures below";
        let yes = path.is_available();
        out.push(Finding::check(
            what,
            yes,
            if yes { "yes" } else { "no" },
            note,
        ));
    }
    let Some(key) = random_key(CipherKind::Aes128Xex) else {
        out.push(Finding::new(
            "random keys",
            Verdict::Fatal,
            "getrandom failed",
            "",
        ));
        return out;
    };
    for path in Path::available() {
        let engine = Engine::new(&key, &TweakTable::for_cipher(key.kind(), 1), path);
        let used = if path == best { "  <- used" } else { "" };
        out.push(Finding::plain(
            name(path),
            format!("{}{used}", figures(&engine)),
        ));
    }
    for kind in [CipherKind::Aes128Xe, CipherKind::Aes256Xts] {
        if let Some(key) = random_key(kind) {
            let engine = Engine::new(&key, &TweakTable::for_cipher(kind, 1), best);
            let what = if kind == CipherKind::Aes128Xe {
                "  the same, aes128-xe"
            } else {
                "  the same, aes256-xts"
            };
            out.push(Finding::plain(what, figures(&engine)));
        }
    }
    out.push(Finding::plain(
        "plain copy",
        figure(
            |at, data, other| {
                other[at..at + PAGE].copy_from_slice(&data[at..at + PAGE]);
            },
            PAGE,
        )
        .gb(),
    ));
    out
}

fn random_key(kind: CipherKind) -> Option<MemoryKey> {
    MemoryKey::random(kind).ok()
}

fn name(path: Path) -> &'static str {
    match path {
        Path::Portable => "portable, aes128-xex",
        Path::AesNi => "AES-NI, aes128-xex",
        Path::Vaes256 => "VAES-256, aes128-xex",
        Path::Vaes512 => "VAES-512, aes128-xex",
    }
}

fn figures(engine: &Engine) -> String {
    let page = figure(
        |at, data, _| engine.decrypt_slice(at as u64, &mut data[at..at + PAGE]),
        PAGE,
    );
    let line = figure(
        |at, data, _| engine.decrypt_slice(at as u64, &mut data[at..at + LINE]),
        LINE,
    );
    format!(
        "pages {}, single lines {:5.1} ns",
        page.gb(),
        line.nanoseconds()
    )
}

/// Time for one granule.
struct Figure {
    seconds: f64,
    bytes: usize,
}

impl Figure {
    fn gb(&self) -> String {
        format!("{:6.2} GB/s", self.bytes as f64 / self.seconds / 1e9)
    }

    fn nanoseconds(&self) -> f64 {
        self.seconds * 1e9
    }
}

/// The best round's time of `work` on granules of `bytes` bytes, all over the working set.
fn figure(work: impl Fn(usize, &mut [u8], &mut [u8]), bytes: usize) -> Figure {
    let (mut data, mut other) = (vec![0x5a; SET], vec![0; SET]);
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut granules = 0u64;
        while start.elapsed() < ROUND {
            for at in (0..SET).step_by(bytes) {
                work(at, &mut data, &mut other);
            }
            black_box((&mut data, &mut other));
            granules += (SET / bytes) as u64;
        }
        best = best.min(start.elapsed().as_secs_f64() / granules as f64);
    }
    Figure {
        seconds: best,
        bytes,
    }
}
