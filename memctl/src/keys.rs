//! Which ASID has which key.

use sevlab_arch::{Asid, Spa};

use crate::cipher::{CipherKind, Engine, Path, TweakTable};
use crate::error::Error;
use crate::key::MemoryKey;

/// The last ASID there is: an RMP entry has 10 bits for it.
pub const MAX_ASID: u32 = 1023;

/// The key slots of the memory controller, already expanded into cipher engines.
pub(crate) struct KeySlots {
    slots: Vec<Option<Engine>>,
    tweaks: TweakTable,
    kind: CipherKind,
    path: Path,
}

impl KeySlots {
    pub(crate) fn new(kind: CipherKind, tweak_seed: u64, path: Path) -> Self {
        Self {
            slots: Vec::new(),
            tweaks: TweakTable::for_cipher(kind, tweak_seed),
            kind,
            path,
        }
    }

    /// The engine of `asid`, for an access to `spa`.
    #[inline]
    pub(crate) fn engine(&self, asid: Asid, spa: Spa) -> Result<&Engine, Error> {
        self.slots
            .get(asid.0 as usize)
            .and_then(Option::as_ref)
            .ok_or(Error::NoKey { asid, spa })
    }

    /// Whether [`KeySlots::install`] would take this key for this ASID.
    pub(crate) fn check(&self, asid: Asid, key: &MemoryKey) -> Result<(), Error> {
        if asid.0 > MAX_ASID {
            return Err(Error::AsidRange {
                asid,
                max: MAX_ASID,
            });
        }
        if key.kind() != self.kind {
            return Err(Error::CipherMismatch {
                key: key.kind(),
                machine: self.kind,
            });
        }
        Ok(())
    }

    pub(crate) fn install(&mut self, asid: Asid, key: &MemoryKey) -> Result<(), Error> {
        self.check(asid, key)?;
        let engine = Engine::new(key, &self.tweaks, self.path);
        let at = asid.0 as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        self.slots[at] = Some(engine);
        Ok(())
    }

    pub(crate) fn remove(&mut self, asid: Asid) {
        if let Some(slot) = self.slots.get_mut(asid.0 as usize) {
            *slot = None;
        }
    }
}
