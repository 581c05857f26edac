//! The guest-hypervisor communication block: the shared page, its valid bitmap, and the numbers of the protocol.
//!
//! Source: GHCB specification (AMD 56421), table "GHCB layout"; Linux `asm/svm.h`, `asm/sev-common.h`.
//!
//! The page's fields are private here: a field is read only if the valid bitmap says that the other side wrote it, and
//! writing one marks it valid. A page is always a local copy; who copies it decides when, and nothing changes under it.

use core::fmt;

/// Lowest protocol version.
pub const VERSION_MIN: u16 = 1;
/// Highest protocol version this crate describes.
pub const VERSION_MAX: u16 = 2;
/// Usage: the page is laid out as described here.
pub const USAGE_STANDARD: u32 = 0;
/// Offset of the shared buffer.
pub const SHARED_BUFFER: usize = 0x800;
/// Bytes in the shared buffer.
pub const SHARED_BUFFER_LEN: usize = 0x7f0;

open_enum! {
    /// A field of the page with a bit in the valid bitmap, by its offset.
    Field(u16) {
        CPL = 0x0cb, "CPL.";
        XSS = 0x140, "XSS.";
        DR7 = 0x160, "DR7.";
        RIP = 0x178, "RIP.";
        RSP = 0x1d8, "RSP.";
        RAX = 0x1f8, "RAX.";
        RCX = 0x308, "RCX.";
        RDX = 0x310, "RDX.";
        RBX = 0x318, "RBX.";
        RBP = 0x328, "RBP.";
        RSI = 0x330, "RSI.";
        RDI = 0x338, "RDI.";
        R8 = 0x340, "R8.";
        R9 = 0x348, "R9.";
        R10 = 0x350, "R10.";
        R11 = 0x358, "R11.";
        R12 = 0x360, "R12.";
        R13 = 0x368, "R13.";
        R14 = 0x370, "R14.";
        R15 = 0x378, "R15.";
        SW_EXIT_CODE = 0x390, "SW_EXITCODE.";
        SW_EXIT_INFO1 = 0x398, "SW_EXITINFO1.";
        SW_EXIT_INFO2 = 0x3a0, "SW_EXITINFO2.";
        SW_SCRATCH = 0x3a8, "SW_SCRATCH.";
        XCR0 = 0x3e8, "XCR0.";
    }
}

impl Field {
    /// The field's bit in the valid bitmap: its offset divided by 8.
    #[must_use]
    pub const fn bit(self) -> u32 {
        self.0 as u32 / 8
    }
}

/// A field of the GHCB was read that its writer did not mark valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldNotValid {
    /// The field.
    pub field: Field,
}

impl fmt::Display for FieldNotValid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GHCB field {} is not marked valid", self.field)
    }
}

impl core::error::Error for FieldNotValid {}

wire! {
    /// The page.
    Ghcb: 0x1000, sealed {
        0x000 reserved_000: [u8; 203], "Reserved.";
        0x0cb cpl: u8, "CPL.";
        0x0cc reserved_0cc: [u8; 116], "Reserved.";
        0x140 xss: u64, "XSS.";
        0x148 reserved_148: [u8; 24], "Reserved.";
        0x160 dr7: u64, "DR7.";
        0x168 reserved_168: [u8; 16], "Reserved.";
        0x178 rip: u64, "RIP.";
        0x180 reserved_180: [u8; 88], "Reserved.";
        0x1d8 rsp: u64, "RSP.";
        0x1e0 reserved_1e0: [u8; 24], "Reserved.";
        0x1f8 rax: u64, "RAX.";
        0x200 reserved_200: [u8; 264], "Reserved.";
        0x308 rcx: u64, "RCX.";
        0x310 rdx: u64, "RDX.";
        0x318 rbx: u64, "RBX.";
        0x320 reserved_320: u64, "Reserved.";
        0x328 rbp: u64, "RBP.";
        0x330 rsi: u64, "RSI.";
        0x338 rdi: u64, "RDI.";
        0x340 r8: u64, "R8.";
        0x348 r9: u64, "R9.";
        0x350 r10: u64, "R10.";
        0x358 r11: u64, "R11.";
        0x360 r12: u64, "R12.";
        0x368 r13: u64, "R13.";
        0x370 r14: u64, "R14.";
        0x378 r15: u64, "R15.";
        0x380 reserved_380: [u8; 16], "Reserved.";
        0x390 sw_exit_code: u64, "Exit code.";
        0x398 sw_exit_info1: u64, "Exit information 1.";
        0x3a0 sw_exit_info2: u64, "Exit information 2.";
        0x3a8 sw_scratch: u64, "Guest physical address of more data.";
        0x3b0 reserved_3b0: [u8; 56], "Reserved.";
        0x3e8 xcr0: u64, "XCR0.";
        0x3f0 valid_bitmap: [u8; 16], "One bit for each quadword before it.";
        0x400 x87_state_gpa: u64, "x87 state.";
        0x408 reserved_408: [u8; 1016], "Reserved.";
        0x800 shared_buffer: [u8; SHARED_BUFFER_LEN], "Data that fits here.";
        0xff0 reserved_ff0: [u8; 10], "Reserved.";
        0xffa protocol_version: u16, "Version the guest uses.";
        0xffc ghcb_usage: u32, "Layout of the page.";
    }
}

macro_rules! fields {
    ($($get:ident, $set:ident, $field:ident;)*) => {
        impl Ghcb {
            $(
                #[doc = concat!("`", stringify!($get), "`, if it is marked valid.")]
                pub const fn $get(&self) -> Result<u64, FieldNotValid> {
                    if self.is_valid(Field::$field) {
                        Ok(self.$get)
                    } else {
                        Err(FieldNotValid { field: Field::$field })
                    }
                }

                #[doc = concat!("Writes `", stringify!($get), "` and marks it valid.")]
                pub const fn $set(&mut self, value: u64) {
                    self.$get = value;
                    self.mark_valid(Field::$field);
                }
            )*
        }
    };
}

fields! {
    xss, set_xss, XSS;
    dr7, set_dr7, DR7;
    rip, set_rip, RIP;
    rsp, set_rsp, RSP;
    rax, set_rax, RAX;
    rcx, set_rcx, RCX;
    rdx, set_rdx, RDX;
    rbx, set_rbx, RBX;
    rbp, set_rbp, RBP;
    rsi, set_rsi, RSI;
    rdi, set_rdi, RDI;
    r8, set_r8, R8;
    r9, set_r9, R9;
    r10, set_r10, R10;
    r11, set_r11, R11;
    r12, set_r12, R12;
    r13, set_r13, R13;
    r14, set_r14, R14;
    r15, set_r15, R15;
    sw_exit_code, set_sw_exit_code, SW_EXIT_CODE;
    sw_exit_info1, set_sw_exit_info1, SW_EXIT_INFO1;
    sw_exit_info2, set_sw_exit_info2, SW_EXIT_INFO2;
    sw_scratch, set_sw_scratch, SW_SCRATCH;
    xcr0, set_xcr0, XCR0;
}

impl Ghcb {
    /// `cpl`, if it is marked valid.
    pub const fn cpl(&self) -> Result<u8, FieldNotValid> {
        if self.is_valid(Field::CPL) {
            Ok(self.cpl)
        } else {
            Err(FieldNotValid { field: Field::CPL })
        }
    }

    /// Writes `cpl` and marks it valid.
    pub const fn set_cpl(&mut self, value: u8) {
        self.cpl = value;
        self.mark_valid(Field::CPL);
    }

    /// Whether the field is marked valid.
    #[must_use]
    pub const fn is_valid(&self, field: Field) -> bool {
        let bit = field.bit() as usize;
        bit / 8 < 16 && self.valid_bitmap[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// Marks the field valid without writing it.
    pub const fn mark_valid(&mut self, field: Field) {
        let bit = field.bit() as usize;
        if bit / 8 < 16 {
            self.valid_bitmap[bit / 8] |= 1 << (bit % 8);
        }
    }

    /// Takes the field's mark away.
    pub const fn mark_invalid(&mut self, field: Field) {
        let bit = field.bit() as usize;
        if bit / 8 < 16 {
            self.valid_bitmap[bit / 8] &= !(1 << (bit % 8));
        }
    }

    /// The valid bitmap.
    #[must_use]
    pub const fn valid_bitmap(&self) -> &[u8; 16] {
        &self.valid_bitmap
    }

    /// Marks nothing valid.
    pub const fn clear_valid(&mut self) {
        self.valid_bitmap = [0; 16];
    }

    /// The shared buffer.
    #[must_use]
    pub const fn shared_buffer(&self) -> &[u8; SHARED_BUFFER_LEN] {
        &self.shared_buffer
    }

    /// The shared buffer, for writing.
    #[must_use]
    pub const fn shared_buffer_mut(&mut self) -> &mut [u8; SHARED_BUFFER_LEN] {
        &mut self.shared_buffer
    }

    /// The protocol version the guest uses.
    #[must_use]
    pub const fn protocol_version(&self) -> u16 {
        self.protocol_version
    }

    /// Sets the protocol version.
    pub const fn set_protocol_version(&mut self, version: u16) {
        self.protocol_version = version;
    }

    /// The page's usage.
    #[must_use]
    pub const fn usage(&self) -> u32 {
        self.ghcb_usage
    }

    /// Sets the page's usage.
    pub const fn set_usage(&mut self, usage: u32) {
        self.ghcb_usage = usage;
    }
}

open_enum! {
    /// SW_EXITINFO1 bits 31:0 in a response.
    ResponseKind(u32) {
        SUCCESS = 0, "The event was handled.";
        EXCEPTION = 1, "SW_EXITINFO2 holds an event to raise.";
        ERROR = 2, "SW_EXITINFO2 holds an [`ErrorCode`].";
    }
}

open_enum! {
    /// Why the hypervisor refused an event.
    ErrorCode(u64) {
        NOT_REGISTERED = 1, "The GHCB's address is not the registered one.";
        INVALID_USAGE = 2, "The page's usage is not supported.";
        INVALID_SCRATCH_AREA = 3, "SW_SCRATCH does not name an allowed area.";
        MISSING_INPUT = 4, "A field the event needs is not marked valid.";
        INVALID_INPUT = 5, "A field holds a value the event does not allow.";
        INVALID_EVENT = 6, "The event is unknown or not allowed.";
    }
}

bitflags::bitflags! {
    /// Hypervisor features.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct HvFeatures: u64 {
        /// SNP.
        const SNP = 1 << 0;
        /// AP creation.
        const AP_CREATION = 1 << 1;
        /// Restricted injection.
        const RESTRICTED_INJECTION = 1 << 2;
        /// Restricted injection's timer.
        const RESTRICTED_INJECTION_TIMER = 1 << 3;
        /// List of APIC identifiers.
        const APIC_ID_LIST = 1 << 4;
        /// More than one VMPL.
        const MULTI_VMPL = 1 << 5;
        /// Page state changes without SNP.
        const PSC = 1 << 6;
        /// Extended interrupts.
        const EXTENDED_INTERRUPTS = 1 << 9;
    }
}

open_enum! {
    /// Low 12 bits of the GHCB MSR.
    MsrInfo(u16) {
        GHCB_GPA = 0x000, "The rest is the page's address.";
        SEV_INFO_RESP = 0x001, "Versions and C-bit position.";
        SEV_INFO_REQ = 0x002, "Ask for them.";
        CPUID_REQ = 0x004, "One register of CPUID.";
        CPUID_RESP = 0x005, "Its value.";
        AP_RESET_HOLD_REQ = 0x006, "Wait for INIT and SIPI.";
        AP_RESET_HOLD_RESP = 0x007, "It has come.";
        PREFERRED_GPA_REQ = 0x010, "Ask where the page should be.";
        PREFERRED_GPA_RESP = 0x011, "Where the page should be.";
        REGISTER_GPA_REQ = 0x012, "Register the page.";
        REGISTER_GPA_RESP = 0x013, "The page registered.";
        PSC_REQ = 0x014, "Change one page's state.";
        PSC_RESP = 0x015, "Result of that.";
        RUN_VMPL_REQ = 0x016, "Run another VMPL.";
        RUN_VMPL_RESP = 0x017, "Result of that.";
        HV_FEATURES_REQ = 0x080, "Ask for the features.";
        HV_FEATURES_RESP = 0x081, "The features.";
        TERMINATE = 0x100, "Terminate the guest.";
    }
}

/// The bits of the GHCB MSR that tell what the rest is.
pub const MSR_INFO_MASK: u64 = 0xfff;

open_enum! {
    /// Operation of a page state change.
    PscOp(u8) {
        PRIVATE = 1, "Assign the page to the guest.";
        SHARED = 2, "Give the page to the hypervisor.";
        PSMASH = 3, "Hint: split a 2 MiB page.";
        UNSMASH = 4, "Hint: join a 2 MiB page.";
    }
}

/// Most entries a page state change may hold.
pub const PSC_MAX_ENTRIES: usize = 253;

wire! {
    /// Head of a page state change's list.
    PscHeader: 0x08, aligned {
        0x00 cur_entry: u16, "The entry being processed.";
        0x02 end_entry: u16, "The last entry.";
        0x04 reserved: u32, "Must be zero.";
    }
}

/// SW_EXITINFO2 after a page state change: the header is invalid.
pub const PSC_ERROR_INVALID_HEADER: u64 = 1 << 32 | 1;
/// SW_EXITINFO2 after a page state change: the entry `cur_entry` is invalid.
pub const PSC_ERROR_INVALID_ENTRY: u64 = 1 << 32 | 2;
/// SW_EXITINFO2 after a page state change: the hypervisor failed.
pub const PSC_ERROR_GENERIC: u64 = 0x100 << 32;

open_enum! {
    /// Why a guest terminates itself, reason set 0.
    TerminateReason(u8) {
        GENERAL = 0, "General.";
        PROTOCOL_UNSUPPORTED = 1, "No common protocol version.";
        SNP_UNSUPPORTED = 2, "The hypervisor lacks an SNP feature.";
    }
}
