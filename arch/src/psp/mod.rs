//! The secure processor's mailbox: commands, status codes, platform and guest states, command buffers, policies.
//!
//! Sources: SEV API (AMD 55766), SEV-SNP firmware ABI (AMD 56860), Linux `include/linux/psp-sev.h`. Command buffers are
//! packed, little-endian and given by system physical address. Buffers named `Snp...` belong to the SNP commands.

mod policy;
mod sev;
mod snp;

pub use policy::{SevPolicy, SnpPolicy};
pub use sev::*;
pub use snp::*;

open_enum! {
    /// A command identifier, as written to the mailbox.
    Command(u32) {
        INIT = 0x001, "Initialise the platform for SEV.";
        SHUTDOWN = 0x002, "Return the platform to the uninitialised state.";
        FACTORY_RESET = 0x003, "Forget every persistent identity.";
        PLATFORM_STATUS = 0x004, "Versions, state and flags of the platform.";
        PEK_GEN = 0x005, "Make a new platform endorsement key.";
        PEK_CSR = 0x006, "Signing request for the platform endorsement key.";
        PEK_CERT_IMPORT = 0x007, "Join the platform to an owner.";
        PDH_CERT_EXPORT = 0x008, "Export the platform Diffie-Hellman certificate and its chain.";
        PDH_GEN = 0x009, "Make a new platform Diffie-Hellman key.";
        DF_FLUSH = 0x00a, "Flush the data fabric's write buffers of all cores.";
        DOWNLOAD_FIRMWARE = 0x00b, "Replace the firmware.";
        GET_ID = 0x00c, "The chip's unique identifier.";
        INIT_EX = 0x00d, "INIT with storage kept by the host.";
        DECOMMISSION = 0x020, "Delete a guest's context.";
        ACTIVATE = 0x021, "Install a guest's key for an ASID.";
        DEACTIVATE = 0x022, "Remove a guest's key from its ASID.";
        GUEST_STATUS = 0x023, "Policy, ASID and state of a guest.";
        COPY = 0x024, "Move an encrypted page of a guest.";
        ACTIVATE_EX = 0x025, "ACTIVATE on chosen core complexes.";
        LAUNCH_START = 0x030, "Create a guest's context and key.";
        LAUNCH_UPDATE_DATA = 0x031, "Encrypt and measure guest memory.";
        LAUNCH_UPDATE_VMSA = 0x032, "Encrypt and measure a save area.";
        LAUNCH_MEASURE = 0x033, "Close the measurement and return it.";
        LAUNCH_SECRET = 0x034, "Inject the owner's secret into guest memory.";
        LAUNCH_FINISH = 0x035, "Make the guest ready to run.";
        ATTESTATION = 0x036, "Attestation report of an SEV guest.";
        SEND_START = 0x040, "Begin to send a guest.";
        SEND_UPDATE_DATA = 0x041, "Send guest memory.";
        SEND_UPDATE_VMSA = 0x042, "Send a save area.";
        SEND_FINISH = 0x043, "End the sending.";
        SEND_CANCEL = 0x044, "Give up the sending.";
        RECEIVE_START = 0x050, "Begin to receive a guest.";
        RECEIVE_UPDATE_DATA = 0x051, "Receive guest memory.";
        RECEIVE_UPDATE_VMSA = 0x052, "Receive a save area.";
        RECEIVE_FINISH = 0x053, "End the receiving.";
        DBG_DECRYPT = 0x060, "Decrypt guest memory for debugging.";
        DBG_ENCRYPT = 0x061, "Encrypt guest memory for debugging.";
        SWAP_OUT = 0x070, "Swap an SEV guest's page out.";
        SWAP_IN = 0x071, "Swap an SEV guest's page in.";
        SNP_INIT = 0x081, "Initialise the platform for SNP.";
        SNP_SHUTDOWN = 0x082, "Leave the SNP initialised state.";
        SNP_PLATFORM_STATUS = 0x083, "Versions and state of the SNP platform.";
        SNP_DF_FLUSH = 0x084, "Flush the data fabric's write buffers.";
        SNP_INIT_EX = 0x085, "SNP_INIT with parameters.";
        SNP_SHUTDOWN_EX = 0x086, "SNP_SHUTDOWN with parameters.";
        SNP_DECOMMISSION = 0x090, "Delete a guest's context.";
        SNP_ACTIVATE = 0x091, "Bind a guest to an ASID and install its key.";
        SNP_GUEST_STATUS = 0x092, "Policy, ASID and state of a guest.";
        SNP_GCTX_CREATE = 0x093, "Make a firmware page a guest context page.";
        SNP_GUEST_REQUEST = 0x094, "Pass a guest's message to the firmware.";
        SNP_ACTIVATE_EX = 0x095, "SNP_ACTIVATE on chosen core complexes.";
        SNP_LAUNCH_START = 0x0a0, "Begin a launch.";
        SNP_LAUNCH_UPDATE = 0x0a1, "Insert a page into the guest and measure it.";
        SNP_LAUNCH_FINISH = 0x0a2, "Close the measurement, check the identity block.";
        SNP_DBG_DECRYPT = 0x0b0, "Decrypt a guest page for debugging.";
        SNP_DBG_ENCRYPT = 0x0b1, "Encrypt a guest page for debugging.";
        SNP_PAGE_SWAP_OUT = 0x0c0, "Swap a page out.";
        SNP_PAGE_SWAP_IN = 0x0c1, "Swap a page in.";
        SNP_PAGE_MOVE = 0x0c2, "Move a page.";
        SNP_PAGE_MD_INIT = 0x0c3, "Make a metadata page.";
        SNP_PAGE_SET_STATE = 0x0c6, "Set the state of pages to firmware.";
        SNP_PAGE_RECLAIM = 0x0c7, "Return a firmware-owned page to the hypervisor.";
        SNP_PAGE_UNSMASH = 0x0c8, "Join 512 small pages into a large one.";
        SNP_CONFIG = 0x0c9, "Set the reported TCB and chip identity masks.";
        SNP_DOWNLOAD_FIRMWARE_EX = 0x0ca, "Replace the firmware, provisionally.";
        SNP_COMMIT = 0x0cb, "Commit the current firmware.";
        SNP_VLEK_LOAD = 0x0cd, "Load a versioned loaded endorsement key.";
        SNP_FEATURE_INFO = 0x0ce, "The firmware's feature words.";
    }
}

open_enum! {
    /// What the firmware answers. Zero is success.
    Status(u32) {
        SUCCESS = 0x00, "Done.";
        INVALID_PLATFORM_STATE = 0x01, "The platform's state does not allow the command.";
        INVALID_GUEST_STATE = 0x02, "The guest's state does not allow the command.";
        INVALID_CONFIG = 0x03, "The platform's configuration is invalid.";
        INVALID_LENGTH = 0x04, "A buffer is too small; the needed length has been written back.";
        ALREADY_OWNED = 0x05, "The platform already has an owner.";
        INVALID_CERTIFICATE = 0x06, "A certificate is invalid.";
        POLICY_FAILURE = 0x07, "The guest's policy forbids it.";
        INACTIVE = 0x08, "The guest is not active.";
        INVALID_ADDRESS = 0x09, "An address is invalid.";
        BAD_SIGNATURE = 0x0a, "A signature does not verify.";
        BAD_MEASUREMENT = 0x0b, "A measurement or MAC does not match.";
        ASID_OWNED = 0x0c, "The ASID belongs to another guest.";
        INVALID_ASID = 0x0d, "The ASID is out of range.";
        WBINVD_REQUIRED = 0x0e, "Caches must be written back first.";
        DFFLUSH_REQUIRED = 0x0f, "The data fabric must be flushed first.";
        INVALID_GUEST = 0x10, "The handle or context names no guest.";
        INVALID_COMMAND = 0x11, "The command is unknown.";
        ACTIVE = 0x12, "The guest is active.";
        HWERROR_PLATFORM = 0x13, "Hardware failure; the platform is safe.";
        HWERROR_UNSAFE = 0x14, "Hardware failure; the platform is not safe.";
        UNSUPPORTED = 0x15, "The feature is not supported.";
        INVALID_PARAM = 0x16, "A parameter is invalid.";
        RESOURCE_LIMIT = 0x17, "The firmware is out of a resource.";
        SECURE_DATA_INVALID = 0x18, "Stored data failed its integrity check.";
        INVALID_PAGE_SIZE = 0x19, "The page's size in the RMP is not the expected one.";
        INVALID_PAGE_STATE = 0x1a, "The page's RMP state is not the expected one.";
        INVALID_MDATA_ENTRY = 0x1b, "The metadata entry is invalid.";
        INVALID_PAGE_OWNER = 0x1c, "The page belongs to somebody else.";
        AEAD_OFLOW = 0x1d, "The message sequence number would overflow.";
        EXIT_RING_BUFFER = 0x1f, "The command ring buffer mode was left.";
        RMP_INIT_REQUIRED = 0x20, "The RMP must be initialised first.";
        BAD_SVN = 0x21, "The firmware image is older than the committed one.";
        BAD_VERSION = 0x22, "The firmware image's version is too low.";
        SHUTDOWN_REQUIRED = 0x23, "The platform must be shut down first.";
        UPDATE_FAILED = 0x24, "The firmware update failed.";
        RESTORE_REQUIRED = 0x25, "The previous firmware must be restored.";
        RMP_INITIALIZATION_FAILED = 0x26, "The RMP could not be initialised.";
        INVALID_KEY = 0x27, "The key is invalid.";
    }
}

impl Status {
    /// Whether the command was carried out.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }
}

impl core::error::Error for Status {}

open_enum! {
    /// The platform's state, as PLATFORM_STATUS reports it.
    PlatformState(u8) {
        UNINIT = 0, "Not initialised.";
        INIT = 1, "Initialised, no guests.";
        WORKING = 2, "Initialised, with guests.";
    }
}

open_enum! {
    /// A guest's state under the SEV (not SNP) commands (SEV API, GUEST_STATUS).
    GuestState(u8) {
        UNINIT = 0, "No context.";
        LAUNCH_UPDATE = 1, "Being launched: memory may be added.";
        LAUNCH_SECRET = 2, "Measured: a secret may be injected.";
        RUNNING = 3, "Launched or received.";
        SEND_UPDATE = 4, "Being sent.";
        RECEIVE_UPDATE = 5, "Being received.";
        SENT = 6, "Sent; may not run here any more.";
    }
}

open_enum! {
    /// A guest's state under the SNP commands (SNP ABI, SNP_GUEST_STATUS).
    SnpGuestState(u8) {
        INIT = 0, "The context exists.";
        LAUNCH = 1, "Being launched.";
        RUNNING = 2, "Launched.";
    }
}
