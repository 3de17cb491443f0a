//! tmp
use super::capture::CaptureSettings;
use crate::config::Config;
use crate::runtime::Result;
/// x
pub async fn prepare(_: &Config, _: &CaptureSettings) -> Result<()> {
    Ok(())
}
