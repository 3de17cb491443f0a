//! tmp
use crate::config::Config; use crate::runtime::Result; use super::capture::CaptureSettings;
/// x
pub async fn prepare(_: &Config, _: &CaptureSettings) -> Result<()> { Ok(()) }
