#![allow(unsafe_code)] // the C library's option, and when it is set
//! The heap of the simulator itself, in huge pages: decoded blocks and translations are gone over at random, and each of the host's
//! small pages costs a walk.

use libmimalloc_sys::{mi_option_large_os_pages, mi_option_set};

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Before the first allocation, or what comes first would be without.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = {
    extern "C" fn huge_pages() {
        // SAFETY: sets an option; its number is the library's own.
        unsafe { mi_option_set(mi_option_large_os_pages, 1) };
    }
    huge_pages
};
