//! What a caller's `roleArn` may do with object storage, where the settings give roles a meaning.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::objects::{Uri, unreadable, unwritable};

/// Checks a role against everything that is read and every folder that is written in its name. Without
/// a file of roles, roles are only echoed and every one passes.
///
/// # Errors
/// `Validation` with Bedrock's sentences about roles and their permissions.
pub fn check_role(config: &Config, role: &str, reads: &[Uri], writes: &[Uri]) -> Result<()> {
    let Some(roles) = &config.roles else { return Ok(()) };
    let grant = roles.grant(role).ok_or_else(|| {
        Error::validation(format!(
            "Could not assume provided IAM role: {role} is not among the roles that this service knows; give one of \
             them, or have it added to the file that TUNESMITH_ROLES names"
        ))
    })?;
    if let Some(uri) = reads.iter().find(|uri| !grant.may_read(&uri.to_string())) {
        return Err(Error::validation(unreadable(uri)));
    }
    if let Some(folder) = writes.iter().find(|folder| !grant.may_write(&folder.to_string())) {
        return Err(Error::validation(unwritable(folder)));
    }
    Ok(())
}
