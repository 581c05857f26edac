//! Random commands on random buffers: the firmware answers, and never panics.

mod common;

use common::*;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// A word that is often something the firmware takes.
    fn word(&mut self, size: u64) -> u64 {
        let addresses = [
            AREA.0,
            TMR.0,
            GUEST.0,
            GCTX.0,
            0x80_0000,
            size - 4096,
            size,
            u64::MAX,
        ];
        match self.below(8) {
            0 => self.next(),
            1 => 0,
            2 => self.next() & 0xff,
            3 => 1 << self.below(64),
            4 => [16, 48, 64, 4096, 0x824, 1 << 20][self.below(6)],
            _ => {
                addresses[self.below(addresses.len())].wrapping_add([0, 0, 0, 16, 1][self.below(5)])
            }
        }
    }
}

fn run(seed: u64, snp: bool, steps: usize) -> usize {
    let r = rig(snp, CipherKind::Aes128Xex);
    let mut rng = Random(seed);
    let mut done = 0;
    if snp {
        r.assign(GCTX, 0, 0, true, false);
        for i in 0..8 {
            r.assign(GUEST.plus(i * 4096), i * 4096, 3, i % 2 == 0, false);
        }
    }
    for step in 0..steps {
        let size = r.mem.size();
        let command = match rng.below(10) {
            0 => rng.next() as u32,
            _ => Command::ALL[rng.below(Command::ALL.len())].0,
        };
        let mut buffer = [0u8; 64];
        for word in buffer.as_chunks_mut::<8>().0 {
            let (low, high) = (rng.word(size), rng.word(size));
            let value = if rng.below(2) == 0 {
                low
            } else {
                low & 0xffff_ffff | high << 32
            };
            *word = value.to_le_bytes();
        }
        // Often name things that exist.
        match rng.below(4) {
            0 => buffer[..4].copy_from_slice(&(1 + rng.below(3) as u32).to_le_bytes()),
            1 => buffer[..8].copy_from_slice(&GCTX.0.to_le_bytes()),
            _ => {}
        }
        r.write(AREA, &buffer);
        let at = if rng.below(16) == 0 {
            Spa(rng.word(size))
        } else {
            AREA
        };
        let status = r.fw.submit(command, at);
        assert!(status.name().is_some(), "step {step}: {status:?}");
        done += usize::from(status == Status::SUCCESS);
    }
    done
}

#[test]
fn random_commands_are_answered() {
    for seed in 1..=16 {
        for snp in [false, true] {
            run(seed * 0x9e37_79b9_7f4a_7c15, snp, 4000);
        }
    }
}

/// The random walk gets somewhere: it is not refused at the first check every time.
#[test]
fn some_random_commands_succeed() {
    let done: usize = (1..=4)
        .map(|seed| run(seed * 0x1234_5678_9abc_def1, true, 4000))
        .sum();
    assert!(done > 100, "{done} commands succeeded");
}
