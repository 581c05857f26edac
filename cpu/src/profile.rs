//! Which instructions a guest's processor has, by the CPUID features that it is shown.
//!
//! An instruction whose feature is hidden raises #UD, as on a processor without it. Where such a processor would take the bytes
//! for an older instruction (a prefix that it ignores, a hint), they stay what the table says: LZCNT, TZCNT and WBNOINVD are
//! never hidden, and hints do nothing either way.

use iced_x86::Code;
pub use iced_x86::CpuidFeature;

use crate::decode;
use crate::insn::{Insn, Op};

/// The hidden features, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    hidden: [u64; 4],
}

impl Profile {
    /// Nothing is hidden.
    pub const ALL: Self = Self { hidden: [0; 4] };

    /// Hides a feature.
    pub fn hide(&mut self, f: CpuidFeature) {
        let n = f as usize;
        self.hidden[n >> 6 & 3] |= 1 << (n & 63);
    }

    /// Whether the guest has a feature.
    #[must_use]
    pub fn has(&self, f: CpuidFeature) -> bool {
        let n = f as usize;
        self.hidden[n >> 6 & 3] >> (n & 63) & 1 == 0
    }

    /// The instruction as this processor sees it: itself, or one that raises #UD.
    #[inline]
    #[must_use]
    pub fn seen(&self, i: Insn) -> Insn {
        if *self == Self::ALL || self.allows(&i) {
            return i;
        }
        decode::faulting(i.rip, Op::Ud, &i.bytes[..usize::from(i.len)])
    }

    fn allows(&self, i: &Insn) -> bool {
        if matches!(i.op, Op::Nop | Op::Lzcnt | Op::Tzcnt | Op::Wbinvd | Op::Ud) {
            return true;
        }
        Code::try_from(usize::from(i.code))
            .map_or(true, |c| c.cpuid_features().iter().all(|&f| self.has(f)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    #[test]
    fn hidden_instructions_are_undefined() {
        // vaesenc ymm0, ymm1, ymm2; its 128-bit form needs another feature
        let wide = decode(0, &[0xc4, 0xe2, 0x75, 0xdc, 0xc2]).expect("valid");
        let narrow = decode(0, &[0xc4, 0xe2, 0x71, 0xdc, 0xc2]).expect("valid");
        let mut p = Profile::ALL;
        assert_eq!(p.seen(wide).op, Op::Thunk);
        p.hide(CpuidFeature::VAES);
        assert!(!p.has(CpuidFeature::VAES) && p.has(CpuidFeature::AES));
        let gone = p.seen(wide);
        assert_eq!((gone.op, gone.len), (Op::Ud, 5));
        assert_eq!(p.seen(narrow).op, Op::Thunk);
    }
}
