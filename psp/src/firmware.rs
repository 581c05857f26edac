//! The firmware's mailbox and the state that all commands share.
//!
//! Invariants:
//! 1. A command that does not return SUCCESS leaves every state as it was: checks come before effects.
//! 2. An ASID's key is in the memory controller exactly while its guest is active.
//! 3. An ASID that was released can't be activated again before DF_FLUSH.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use sevlab_arch::psp::{Command, PlatformState, SnpGuestState, Status};
use sevlab_arch::{Asid, Spa};
use sevlab_memctl::{CipherKind, MemCtl, MemoryKey};
use zeroize::Zeroizing;

use crate::config::Config;
use crate::dram::Dram;
use crate::entropy::Rng;
use crate::keys::ChipKeys;
use crate::sev::SevGuest;
use crate::snp::{Identity, SnpGuest};

/// The secure processor's firmware.
pub struct Firmware {
    state: Mutex<State>,
}

impl Firmware {
    /// A secure processor that has just been powered on, attached to `mem`.
    #[must_use]
    pub fn new(mem: Arc<MemCtl>, config: Config) -> Self {
        Self {
            state: Mutex::new(State {
                rng: Rng::new(config.entropy.clone()),
                cipher: mem.config().cipher,
                dram: Dram(mem),
                chip: OnceCell::new(),
                config,
                platform: PlatformState::UNINIT,
                es: false,
                snp: false,
                rapl_disabled: false,
                guests: BTreeMap::new(),
                contexts: BTreeMap::new(),
                next_handle: 1,
                asids: BTreeMap::new(),
                unflushed: BTreeSet::new(),
            }),
        }
    }

    /// The launch digest and identity of an SNP guest, by its context page: what an attestation report of
    /// it says. `None` before LAUNCH_FINISH.
    #[must_use]
    pub fn snp_identity(&self, gctx: Spa) -> Option<([u8; 48], Identity)> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let guest = state.contexts.get(&gctx)?;
        (guest.state == SnpGuestState::RUNNING).then(|| (guest.digest.value(), guest.identity))
    }

    /// Runs one mailbox command on the command buffer at `buf`.
    pub fn submit(&self, cmd: u32, buf: Spa) -> Status {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.run(Command(cmd), buf) {
            Ok(()) => Status::SUCCESS,
            Err(status) => status,
        }
    }
}

/// Who an ASID belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// An SEV or SEV-ES guest, by handle.
    Sev(u32),
    /// An SNP guest, by context page.
    Snp(Spa),
}

/// A guest's memory encryption key as the firmware keeps it.
pub(crate) struct Vek(Zeroizing<Vec<u8>>);

impl Vek {
    /// The memory controller's form of the key.
    fn to_memory_key(&self, cipher: CipherKind) -> Result<MemoryKey, Status> {
        MemoryKey::new(cipher, &self.0).map_err(|_| Status::HWERROR_PLATFORM)
    }
}

/// Everything the firmware remembers.
pub(crate) struct State {
    pub(crate) dram: Dram,
    pub(crate) cipher: CipherKind,
    pub(crate) config: Config,
    chip: OnceCell<ChipKeys>,
    pub(crate) rng: Rng,
    /// State under the SEV commands.
    pub(crate) platform: PlatformState,
    /// INIT asked for SEV-ES.
    pub(crate) es: bool,
    /// SNP_INIT was done.
    pub(crate) snp: bool,
    /// SNP_INIT_EX turned the running average power limit off.
    pub(crate) rapl_disabled: bool,
    pub(crate) guests: BTreeMap<u32, SevGuest>,
    /// SNP guests by the address of their context page.
    pub(crate) contexts: BTreeMap<Spa, SnpGuest>,
    pub(crate) next_handle: u32,
    pub(crate) asids: BTreeMap<Asid, Owner>,
    /// ASIDs released since the last DF_FLUSH.
    pub(crate) unflushed: BTreeSet<Asid>,
}

impl State {
    /// The chip's own keys, derived when first asked for: most launches need none of them.
    pub(crate) fn chip(&self) -> &ChipKeys {
        self.chip
            .get_or_init(|| ChipKeys::derive(&self.config.chip_seed))
    }

    fn run(&mut self, command: Command, buf: Spa) -> Result<(), Status> {
        match command {
            Command::INIT => self.init(buf),
            Command::INIT_EX => self.init_ex(buf),
            Command::SHUTDOWN => self.shutdown(),
            Command::PLATFORM_STATUS => self.platform_status(buf),
            Command::PDH_CERT_EXPORT => self.pdh_cert_export(buf),
            Command::GET_ID => self.get_id(buf),
            Command::DF_FLUSH => self.df_flush(),
            Command::LAUNCH_START => self.launch_start(buf),
            Command::LAUNCH_UPDATE_DATA => self.launch_update_data(buf),
            Command::LAUNCH_UPDATE_VMSA => self.launch_update_vmsa(buf),
            Command::LAUNCH_MEASURE => self.launch_measure(buf),
            Command::LAUNCH_SECRET => self.launch_secret(buf),
            Command::LAUNCH_FINISH => self.launch_finish(buf),
            Command::ACTIVATE => self.activate(buf),
            Command::DEACTIVATE => self.deactivate(buf),
            Command::DECOMMISSION => self.decommission(buf),
            Command::GUEST_STATUS => self.guest_status(buf),
            Command::DBG_DECRYPT => self.dbg(buf, true),
            Command::DBG_ENCRYPT => self.dbg(buf, false),
            Command::SNP_INIT => self.snp_init(),
            Command::SNP_INIT_EX => self.snp_init_ex(buf),
            Command::SNP_SHUTDOWN => self.snp_shutdown(),
            Command::SNP_SHUTDOWN_EX => self.snp_shutdown_ex(buf),
            Command::SNP_PLATFORM_STATUS => self.snp_platform_status(buf),
            Command::SNP_DF_FLUSH => self.snp_df_flush(),
            Command::SNP_GCTX_CREATE => self.snp_gctx_create(buf),
            Command::SNP_LAUNCH_START => self.snp_launch_start(buf),
            Command::SNP_LAUNCH_UPDATE => self.snp_launch_update(buf),
            Command::SNP_LAUNCH_FINISH => self.snp_launch_finish(buf),
            Command::SNP_ACTIVATE => self.snp_activate(buf),
            Command::SNP_DECOMMISSION => self.snp_decommission(buf),
            Command::SNP_GUEST_STATUS => self.snp_guest_status(buf),
            Command::SNP_PAGE_RECLAIM => self.snp_page_reclaim(buf),
            Command::SNP_DBG_DECRYPT => self.snp_dbg(buf, true),
            Command::SNP_DBG_ENCRYPT => self.snp_dbg(buf, false),
            _ => Err(Status::INVALID_COMMAND),
        }
    }

    /// A fresh memory encryption key.
    pub(crate) fn new_vek(&mut self) -> Result<Vek, Status> {
        let mut key = Zeroizing::new(vec![0; self.cipher.key_len()]);
        if self.rng.fill(&mut key) {
            Ok(Vek(key))
        } else {
            Err(Status::HWERROR_PLATFORM)
        }
    }

    /// Checks that `asid` may be bound to a guest: `encrypted_state` says which part of the range it must
    /// come from.
    pub(crate) fn check_asid(&self, asid: Asid, encrypted_state: bool) -> Result<(), Status> {
        let range = if encrypted_state {
            1..self.config.min_sev_asid
        } else {
            self.config.min_sev_asid..self.config.max_asid.saturating_add(1)
        };
        if !range.contains(&asid.0) || asid.0 > self.config.max_asid {
            return Err(Status::INVALID_ASID);
        }
        if self.asids.contains_key(&asid) {
            return Err(Status::ASID_OWNED);
        }
        if self.unflushed.contains(&asid) {
            return Err(Status::DFFLUSH_REQUIRED);
        }
        Ok(())
    }

    /// Installs `vek` for `asid` and records the owner.
    pub(crate) fn bind(&mut self, asid: Asid, owner: Owner) -> Result<(), Status> {
        let vek = match owner {
            Owner::Sev(handle) => self.guests.get(&handle).map(|g| &g.vek),
            Owner::Snp(context) => self.contexts.get(&context).and_then(|g| g.vek.as_ref()),
        }
        .ok_or(Status::INVALID_GUEST)?;
        self.dram
            .0
            .install_key(asid, vek.to_memory_key(self.cipher)?)
            .map_err(|_| Status::HWERROR_PLATFORM)?;
        self.asids.insert(asid, owner);
        Ok(())
    }

    /// Takes an ASID's key out of the memory controller.
    pub(crate) fn release(&mut self, asid: Asid) {
        if self.asids.remove(&asid).is_some() {
            self.dram.0.remove_key(asid);
            self.unflushed.insert(asid);
        }
    }
}
