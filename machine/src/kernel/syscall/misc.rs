//! Calls that change nothing.

use super::{Call, DONE, SysResult};

/// Success without effect.
///
/// # Errors
/// None.
pub fn nothing(_: &mut Call<'_, '_>) -> SysResult {
    DONE
}
