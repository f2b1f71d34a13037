//! Which parts of object storage an IAM role stands for. Roles are only names here; a file can give
//! them meaning, so that a request that AWS would refuse for its role is refused here too:
//!
//! ```toml
//! ["arn:aws:iam::000000000000:role/tuning"]
//! read = ["s3://tuning/data"]
//! write = ["s3://tuning/output"]
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use super::Prefix;

/// What a role may do.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    #[serde(default)]
    read: Vec<Prefix>,
    #[serde(default)]
    write: Vec<Prefix>,
}

impl Grant {
    /// Whether the role may read an `s3://` URI.
    pub fn may_read(&self, uri: &str) -> bool {
        self.read.iter().any(|prefix| prefix.holds(uri))
    }

    /// Whether the role may write under an `s3://` URI.
    pub fn may_write(&self, uri: &str) -> bool {
        self.write.iter().any(|prefix| prefix.holds(uri))
    }
}

/// Every role there is, by ARN.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Roles(BTreeMap<String, Grant>);

impl Roles {
    /// Reads the file: JSON when its name ends in `.json`, TOML otherwise.
    ///
    /// # Errors
    /// A sentence for the command line.
    pub fn load(path: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|cause| cause.to_string())?;
        let json = Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let roles: Self = match json {
            true => serde_json::from_str(&text).map_err(|cause| cause.to_string())?,
            false => toml::from_str(&text).map_err(|cause| cause.to_string())?,
        };
        match roles.0.keys().find(|arn| !arn.starts_with("arn:") || !arn.contains(":role/")) {
            Some(name) => Err(format!("{name:?} is not the ARN of a role: write arn:aws:iam::<account>:role/<name>")),
            None => Ok(roles),
        }
    }

    /// What the role may do; `None` when there is no such role.
    pub fn grant(&self, arn: &str) -> Option<&Grant> {
        self.0.get(arn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "arn:aws:iam::000000000000:role/tuning";

    fn load(name: &str, text: &str) -> Result<Roles, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Roles::load(path.to_str().unwrap())
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = load("roles.toml", &format!("[\"{ROLE}\"]\nread = [\"s3://inbox/a\"]\nwrite = [\"s3://out\"]\n"));
        let json = load("roles.json", &format!(r#"{{"{ROLE}": {{"read": ["s3://inbox/a"], "write": ["s3://out"]}}}}"#));
        let roles = toml.unwrap();
        assert_eq!(roles, json.unwrap());
        let grant = roles.grant(ROLE).unwrap();
        assert!(grant.may_read("s3://inbox/a/b") && !grant.may_read("s3://out/b"));
        assert!(grant.may_write("s3://out/b") && !grant.may_write("s3://inbox/a/b"));
        assert!(roles.grant("arn:aws:iam::000000000000:role/other").is_none());
    }

    #[test]
    fn a_file_that_is_not_understood_is_refused_with_a_reason() {
        for (name, text) in [
            ("a.toml", "tuning = 1".to_string()),
            ("a.toml", "[tuning]\nread = []".to_string()),
            ("a.toml", format!("[\"{ROLE}\"]\nreads = []")),
            ("a.toml", format!("[\"{ROLE}\"]\nread = [\"tuning\"]")),
            ("a.json", "[]".to_string()),
        ] {
            assert!(!load(name, &text).unwrap_err().is_empty(), "{text}");
        }
        assert!(Roles::load("/nowhere/roles.toml").is_err());
    }
}
