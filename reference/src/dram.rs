//! DRAM and the AES engines: when a line is there.

use sevlab_memctl::model::{DramModel, Model};

/// What a DRAM access takes, in cycles.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// DRAM, waiting for the channel included.
    pub dram: u64,
    /// AES, waiting for the engine included. 0 for a line that is not encrypted.
    pub aes: u64,
    /// `banks`: whether the row was open.
    pub row_hit: Option<bool>,
}

/// When the channels and their AES engines are free, as one core sees it.
#[derive(Clone, Debug)]
pub struct Busy {
    channel: Vec<u64>,
    engine: Vec<u64>,
}

/// DRAM.
#[derive(Clone, Debug)]
pub struct Dram {
    model: Model,
    channels: u64,
    /// The open row by channel and bank.
    open: Vec<Vec<Option<u64>>>,
}

impl Dram {
    /// DRAM with all rows closed.
    #[must_use]
    pub fn new(model: &Model) -> Self {
        let d = &model.dram;
        let (channels, banks) = match d.model {
            DramModel::Flat => (1, 1),
            DramModel::Banks => (d.channels, d.banks),
        };
        Self {
            model: model.clone(),
            channels: u64::from(channels),
            open: vec![vec![None; banks as usize]; channels as usize],
        }
    }

    /// A core that has not used it yet.
    #[must_use]
    pub fn busy(&self) -> Busy {
        let free = vec![0; self.channels as usize];
        Busy {
            channel: free.clone(),
            engine: free,
        }
    }

    /// The line of that number is read at cycle `now`.
    pub fn read(&mut self, busy: &mut Busy, line: u64, encrypted: bool, now: u64) -> Taken {
        let l = &self.model.latency;
        let (dram, row, aes) = (
            self.model.cycles(l.dram_ns),
            self.model.cycles(l.dram_row_ns),
            self.model.cycles(l.aes_ns),
        );
        let (start, row_hit) = self.row(busy, line, now);
        let mut taken = Taken {
            dram: start - now + dram,
            aes: 0,
            row_hit,
        };
        if row_hit == Some(false) {
            taken.dram += row;
        }
        if encrypted {
            taken.aes = self.engine(busy, line, start) - start + aes;
        }
        taken
    }

    /// The line of that number is written at cycle `now`. Nobody waits until it is its turn.
    pub fn write(&mut self, busy: &mut Busy, line: u64, encrypted: bool, now: u64) -> Taken {
        let (start, row_hit) = self.row(busy, line, now);
        let l = &self.model.latency;
        let mut taken = Taken {
            dram: self.model.cycles(l.dram_write_ns),
            aes: 0,
            row_hit,
        };
        if encrypted {
            taken.aes = self.model.cycles(l.aes_write_ns);
            self.engine(busy, line, start);
        }
        taken
    }

    /// When the line's channel is free, which it then occupies, and whether its row is open, which it then is.
    fn row(&mut self, busy: &mut Busy, line: u64, now: u64) -> (u64, Option<bool>) {
        let d = &self.model.dram;
        if d.model == DramModel::Flat {
            return (now, None);
        }
        let channel = (line % self.channels) as usize;
        let row = line / self.channels / (d.row_bytes / 64).max(1);
        let banks = self.open[channel].len() as u64;
        let (bank, row) = ((row % banks) as usize, row / banks);
        let hit = self.open[channel][bank] == Some(row);
        self.open[channel][bank] = Some(row);
        let start = now.max(busy.channel[channel]);
        busy.channel[channel] = start + self.model.cycles(d.line_ns);
        (start, Some(hit))
    }

    /// When the channel's AES engine is free, which then takes the line.
    fn engine(&self, busy: &mut Busy, line: u64, from: u64) -> u64 {
        let channel = (line % self.channels) as usize;
        let start = from.max(busy.engine[channel]);
        busy.engine[channel] = start + self.model.cycles(self.model.latency.aes_line_ns);
        start
    }
}
