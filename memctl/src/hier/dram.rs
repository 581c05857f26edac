//! When DRAM and the AES engines of its channels answer.

use crate::model::{DramModel, Model};

const NO_ROW: u64 = u64::MAX;

/// Cycles of DRAM and AES, and which rows are open.
pub(super) struct DramTimes {
    banks: bool,
    channels: u64,
    per_channel: u64,
    row_lines: u64,
    read: u64,
    row: u64,
    line: u64,
    write: u32,
    aes: u64,
    aes_write: u32,
    aes_line: u64,
    open: Box<[u64]>,
}

/// Until when channels and their AES engines are busy, as one core sees it: cores' cycles can't be compared within a turn.
pub(super) struct Busy {
    dram: Box<[u64]>,
    aes: Box<[u64]>,
}

/// What an access to DRAM takes.
#[derive(Clone, Copy, Default)]
pub(super) struct Took {
    pub dram: u32,
    pub aes: u32,
    /// `banks`: whether the row was open.
    pub row: Option<bool>,
}

impl DramTimes {
    pub(super) fn new(m: &Model) -> Self {
        let banks = m.dram.model == DramModel::Banks;
        let (channels, per_channel) = if banks {
            (u64::from(m.dram.channels), u64::from(m.dram.banks))
        } else {
            (1, 1)
        };
        let short = |ns| u32::try_from(m.cycles(ns)).unwrap_or(u32::MAX);
        Self {
            banks,
            channels,
            per_channel,
            row_lines: (m.dram.row_bytes / crate::model::LINE).max(1),
            read: m.cycles(m.latency.dram_ns),
            row: m.cycles(m.latency.dram_row_ns),
            line: m.cycles(m.dram.line_ns),
            write: short(m.latency.dram_write_ns),
            aes: m.cycles(m.latency.aes_ns),
            aes_write: short(m.latency.aes_write_ns),
            aes_line: m.cycles(m.latency.aes_line_ns),
            open: vec![NO_ROW; (channels * per_channel) as usize].into(),
        }
    }

    pub(super) fn busy(&self) -> Busy {
        Busy {
            dram: vec![0; self.channels as usize].into(),
            aes: vec![0; self.channels as usize].into(),
        }
    }

    /// A line is read.
    #[inline]
    pub(super) fn read(&mut self, b: &mut Busy, line: u64, encrypted: bool, now: u64) -> Took {
        let (channel, start, row) = self.turn(b, line, now);
        let mut took = Took {
            dram: clamp(start - now + self.read + if row == Some(false) { self.row } else { 0 }),
            aes: 0,
            row,
        };
        if encrypted {
            let at = self.aes_turn(b, channel, start);
            took.aes = clamp(at - start + self.aes);
        }
        took
    }

    /// A line is written: posted, so nobody waits for its turn.
    #[inline]
    pub(super) fn write(&mut self, b: &mut Busy, line: u64, encrypted: bool, now: u64) -> Took {
        let (channel, start, row) = self.turn(b, line, now);
        if encrypted {
            self.aes_turn(b, channel, start);
        }
        Took {
            dram: self.write,
            aes: if encrypted { self.aes_write } else { 0 },
            row,
        }
    }

    /// The line's channel, when it is free, and whether the row is open. Afterwards it is.
    #[inline]
    fn turn(&mut self, b: &mut Busy, line: u64, now: u64) -> (usize, u64, Option<bool>) {
        if !self.banks {
            return (0, now, None);
        }
        let (channel, row) = (line % self.channels, line / self.channels / self.row_lines);
        let (bank, row) = (row % self.per_channel, row / self.per_channel);
        let open = &mut self.open[(channel * self.per_channel + bank) as usize];
        let hit = *open == row;
        *open = row;
        let busy = &mut b.dram[channel as usize];
        let start = now.max(*busy);
        *busy = start + self.line;
        (channel as usize, start, Some(hit))
    }

    #[inline]
    fn aes_turn(&self, b: &mut Busy, channel: usize, start: u64) -> u64 {
        let busy = &mut b.aes[channel];
        let at = start.max(*busy);
        *busy = at + self.aes_line;
        at
    }
}

#[inline]
fn clamp(cycles: u64) -> u32 {
    u32::try_from(cycles).unwrap_or(u32::MAX)
}
