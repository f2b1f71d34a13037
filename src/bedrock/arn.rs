//! Amazon Resource Names: how ours are built.

/// Where things live: the part of an ARN that is the same for all of a caller's resources.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// For example `us-east-1`.
    pub region: &'a str,
    /// Twelve digits.
    pub account: &'a str,
}

impl Place<'_> {
    /// `arn:aws:bedrock:<region>:<account>:model-customization-job/<base model>/<id>`
    pub fn job(self, base_model: &str, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:model-customization-job/{base_model}/{id}", self.region, self.account)
    }

    /// `arn:aws:bedrock:<region>:<account>:custom-model-deployment/<id>`
    pub fn deployment(self, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:custom-model-deployment/{id}", self.region, self.account)
    }

    /// `arn:aws:bedrock:<region>:<account>:provisioned-model/<id>`
    pub fn throughput(self, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:provisioned-model/{id}", self.region, self.account)
    }

    /// `arn:aws:bedrock:<region>:<account>:custom-model/imported/<id>`
    pub fn created_model(self, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:custom-model/imported/{id}", self.region, self.account)
    }

    /// `arn:aws:bedrock:<region>:<account>:model-import-job/<id>`
    pub fn import_job(self, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:model-import-job/{id}", self.region, self.account)
    }

    /// `arn:aws:bedrock:<region>:<account>:imported-model/<id>`
    pub fn imported_model(self, id: &str) -> String {
        format!("arn:aws:bedrock:{}:{}:imported-model/{id}", self.region, self.account)
    }

    /// The full ARN of a KMS key given by id, alias or ARN.
    pub fn kms_key(self, key: &str) -> String {
        match key {
            arn if arn.starts_with("arn:") => arn.to_string(),
            alias if alias.starts_with("alias/") => format!("arn:aws:kms:{}:{}:{alias}", self.region, self.account),
            id => format!("arn:aws:kms:{}:{}:key/{id}", self.region, self.account),
        }
    }
}

/// `arn:aws:bedrock:<region>::foundation-model/<id>`: foundation models belong to no account.
pub fn foundation_model(region: &str, id: &str) -> String {
    format!("arn:aws:bedrock:{region}::foundation-model/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bedrock::constraint::check;
    use crate::bedrock::shapes::{ModelArn, ModelCustomizationJobIdentifier};

    #[test]
    fn what_we_build_fits_the_patterns() {
        let place = Place { region: "us-east-1", account: "000000000000" };
        let job = place.job("tunesmith.starter-v1:0", "abcdefghijkl");
        check("job", &ModelCustomizationJobIdentifier(job)).unwrap();
        check("model", &ModelArn(foundation_model("us-east-1", "tunesmith.starter-v1:0"))).unwrap();
    }

    #[test]
    fn a_kms_key_is_expanded_to_an_arn() {
        let place = Place { region: "us-east-1", account: "000000000000" };
        assert_eq!(place.kms_key("alias/a"), "arn:aws:kms:us-east-1:000000000000:alias/a");
        assert_eq!(place.kms_key("1234"), "arn:aws:kms:us-east-1:000000000000:key/1234");
        assert_eq!(place.kms_key("arn:aws:kms:x"), "arn:aws:kms:x");
    }
}
