//! The file of accounts: which parts of object storage belong to which account, beside the buckets that an account makes
//! in the embedded store.
//!
//! ```toml
//! [111122223333]
//! name = "research"
//! storage = ["s3://research", "s3://shared/research"]
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use super::Prefix;

/// One account of the file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListedAccount {
    /// What people call it.
    #[serde(default)]
    pub name: String,
    /// What it may use: `s3://bucket` or `s3://bucket/folder`.
    #[serde(default)]
    pub storage: Vec<Prefix>,
}

/// Every account of the file, by its twelve digits.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Accounts(BTreeMap<String, ListedAccount>);

impl Accounts {
    /// Reads the file: JSON when its name ends in `.json`, TOML otherwise.
    ///
    /// # Errors
    /// A sentence for the command line.
    pub fn load(path: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|cause| cause.to_string())?;
        let json = Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let accounts: Self = match json {
            true => serde_json::from_str(&text).map_err(|cause| cause.to_string())?,
            false => toml::from_str(&text).map_err(|cause| cause.to_string())?,
        };
        match accounts.0.keys().find(|id| !is_account_id(id)) {
            Some(id) => Err(format!("{id:?} is not the id of an account: write twelve digits")),
            None => Ok(accounts),
        }
    }

    /// Id and entry of each.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &ListedAccount)> {
        self.0.iter()
    }
}

/// Whether the text is what AWS numbers accounts with.
pub fn is_account_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(name: &str, text: &str) -> Result<Accounts, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Accounts::load(path.to_str().unwrap())
    }

    #[test]
    fn toml_and_json_say_the_same() {
        let toml =
            load("a.toml", "[111122223333]\nname = \"research\"\nstorage = [\"s3://research\", \"s3://shared/r/\"]\n");
        let json = r#"{"111122223333": {"name": "research", "storage": ["s3://research", "s3://shared/r"]}}"#;
        let accounts = toml.unwrap();
        assert_eq!(accounts, load("a.json", json).unwrap());
        let (id, listed) = accounts.iter().next().unwrap();
        assert_eq!(
            (id.as_str(), listed.storage[1].bucket(), listed.storage[1].folder()),
            ("111122223333", "shared", "r")
        );
    }

    #[test]
    fn a_file_that_is_not_understood_is_refused_with_a_reason() {
        for text in [
            "research = 1",
            "[research]\nstorage = []",
            "[111122223333]\nbuckets = []",
            "[111122223333]\nstorage = [\"x\"]",
        ] {
            assert!(!load("a.toml", text).unwrap_err().is_empty(), "{text}");
        }
        assert!(Accounts::load("/nowhere/accounts.toml").is_err());
    }
}
