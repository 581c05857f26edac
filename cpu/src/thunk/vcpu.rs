//! Thunks on a [`Vcpu`].

use super::run::{ThunkCpu, ThunkMemory};
use crate::model::costs::Tally;
use crate::state::CpuState;
use crate::stop::Stop;
use crate::vcpu::Vcpu;

impl ThunkMemory for Vcpu {
    #[inline]
    fn read(&mut self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        Vcpu::read(self, va, out)
    }
    #[inline]
    fn write(&mut self, va: u64, data: &[u8]) -> Result<(), Stop> {
        Vcpu::write(self, va, data)
    }
    #[inline]
    fn probe_write(&mut self, va: u64, len: usize) -> Result<(), Stop> {
        Vcpu::probe_write(self, va, len as u64)
    }
}

impl ThunkCpu for Vcpu {
    #[inline]
    fn state(&mut self) -> &mut CpuState {
        &mut self.state
    }
    fn loaded_element(&mut self) {
        if self.modelled {
            self.state.tally = self.state.tally.wrapping_add(Tally::READ);
        }
    }
}
