//! DRAM and the AES engines: when a line is there.

use sevlab_memctl::model::{DramModel, Model};

/// What a DRAM access takes, in cycles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// DRAM, waiting for the channel included.
    pub dram: u64,
    /// AES, waiting for the engine included. 0 for a line that is not encrypted.
    pub aes: u64,
}

/// One channel.
#[derive(Clone, Debug, Default)]
struct Channel {
    /// From when on it is free.
    free: u64,
    /// From when on its AES engine is.
    aes_free: u64,
    /// The open row of each bank.
    open: Vec<Option<u64>>,
}

/// DRAM.
#[derive(Clone, Debug)]
pub struct Dram {
    model: Model,
    channels: Vec<Channel>,
}

impl Dram {
    /// DRAM with all rows closed.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        let channel = Channel {
            open: vec![None; model.dram.banks.max(1) as usize],
            ..Channel::default()
        };
        Self {
            model: model.clone(),
            channels: vec![channel; model.dram.channels.max(1) as usize],
        }
    }

    /// The line of that number is read at cycle `now`.
    pub fn read(&mut self, line: u64, encrypted: bool, now: u64) -> Taken {
        let l = &self.model.latency;
        let (dram, aes) = (self.model.cycles(l.dram_ns), self.model.cycles(l.aes_ns));
        self.access(line, encrypted, now, dram, aes)
    }

    /// The line of that number is written at cycle `now`.
    pub fn write(&mut self, line: u64, encrypted: bool, now: u64) -> Taken {
        let l = &self.model.latency;
        let (dram, aes) = (l.dram_write_ns, l.aes_write_ns);
        let (dram, aes) = (self.model.cycles(dram), self.model.cycles(aes));
        self.access(line, encrypted, now, dram, aes)
    }

    fn access(&mut self, line: u64, encrypted: bool, now: u64, dram: u64, aes: u64) -> Taken {
        let d = &self.model.dram;
        let channels = self.channels.len() as u64;
        let channel = &mut self.channels[(line % channels) as usize];
        let mut taken = Taken { dram, aes: 0 };
        if d.model == DramModel::Banks {
            let in_channel = line / channels;
            let row_number = in_channel / (d.row_bytes / 64).max(1);
            let bank = (row_number % u64::from(d.banks.max(1))) as usize;
            let row = row_number / u64::from(d.banks.max(1));
            let start = now.max(channel.free);
            taken.dram += start - now;
            if channel.open[bank] != Some(row) {
                taken.dram += self.model.cycles(self.model.latency.dram_row_ns);
                channel.open[bank] = Some(row);
            }
            channel.free = start + self.model.cycles(d.line_ns);
        }
        if encrypted {
            let line_time = self.model.cycles(self.model.latency.aes_line_ns);
            taken.aes = aes;
            if line_time > 0 {
                let start = now.max(channel.aes_free);
                taken.aes += start - now;
                channel.aes_free = start + line_time;
            }
        }
        taken
    }
}
