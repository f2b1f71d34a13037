//! Tags of objects and buckets: name and value, with S3's limits.

use s3s::dto::{GetBucketTaggingOutput, GetObjectTaggingOutput, Tag, TagSet};
use s3s::{S3Result, s3_error};

use super::index::{Index, expect_bucket, fault, find, no_such_key};
use super::settings::Kind;

/// Tags in the order in which they were put.
pub(super) type Tags = Vec<(String, String)>;

const MOST_OF_AN_OBJECT: usize = 10;
const MOST_OF_A_BUCKET: usize = 50;
const LONGEST_KEY: usize = 128;
const LONGEST_VALUE: usize = 256;

impl Index {
    pub(super) async fn get_object_tags(&self, bucket: &str, key: &str) -> S3Result<GetObjectTaggingOutput> {
        let held = self.hold(bucket, key).await?;
        Ok(GetObjectTaggingOutput { tag_set: shown(held.object.described.tags), version_id: None })
    }

    /// Replaces the tags of an object; nothing else about it changes.
    ///
    /// # Errors
    /// `NoSuchBucket`, `NoSuchKey`, `InvalidTag`, `BadRequest`.
    pub(super) async fn put_object_tags(&self, bucket: &str, key: &str, tags: TagSet) -> S3Result<()> {
        let tags = of_object(tags)?;
        let mut tx = self.begin().await?;
        expect_bucket(&mut tx, bucket).await?;
        let mut object = find(&mut tx, bucket, key).await?.ok_or_else(no_such_key)?;
        object.described.tags = tags;
        sqlx::query("UPDATE objects SET described = ? WHERE id = ?")
            .bind(serde_json::to_string(&object.described).map_err(fault)?)
            .bind(&object.id)
            .execute(&mut *tx)
            .await
            .map_err(fault)?;
        self.commit(tx, Vec::new()).await
    }

    pub(super) async fn get_bucket_tags(&self, bucket: &str) -> S3Result<GetBucketTaggingOutput> {
        let tags: Option<Tags> = self.setting(bucket, Kind::Tags).await?;
        let tags = tags.ok_or_else(|| s3_error!(NoSuchTagSet, "The TagSet does not exist"))?;
        Ok(GetBucketTaggingOutput { tag_set: shown(tags) })
    }

    pub(super) async fn put_bucket_tags(&self, bucket: &str, tags: TagSet) -> S3Result<()> {
        let tags = checked(pairs(tags)?, MOST_OF_A_BUCKET, "Bucket")?;
        self.put_setting(bucket, Kind::Tags, &tags).await
    }
}

/// # Errors
/// `InvalidTag`, `BadRequest`.
fn of_object(tags: TagSet) -> S3Result<Tags> {
    checked(pairs(tags)?, MOST_OF_AN_OBJECT, "Object")
}

/// The tags of an `x-amz-tagging` header: `key=value&key=value`, percent-encoded.
///
/// # Errors
/// `InvalidArgument` for what cannot be read, `InvalidTag`, `BadRequest`.
pub(super) fn from_header(header: Option<&str>) -> S3Result<Tags> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8().map(std::borrow::Cow::into_owned).map_err(|_| {
            s3_error!(
                InvalidArgument,
                "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name \
                 duplicates."
            )
        })
    };
    let pairs = header.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(key)?, decoded(value)?))
    });
    checked(pairs.collect::<S3Result<_>>()?, MOST_OF_AN_OBJECT, "Object")
}

fn pairs(tags: TagSet) -> S3Result<Tags> {
    let pairs = tags.into_iter().map(|tag| {
        let key = tag.key.ok_or_else(|| s3_error!(InvalidTag, "The TagKey you have provided is invalid"))?;
        Ok((key, tag.value.unwrap_or_default()))
    });
    pairs.collect()
}

fn checked(tags: Tags, most: usize, what: &str) -> S3Result<Tags> {
    if tags.len() > most {
        let mut error = s3_error!(InvalidTag, "{what} tags cannot be greater than {most}");
        if what == "Object" {
            error.set_code(s3s::S3ErrorCode::Custom("BadRequest".into()));
            error.set_status_code(hyper::StatusCode::BAD_REQUEST);
        }
        return Err(error);
    }
    for (at, (key, value)) in tags.iter().enumerate() {
        if key.is_empty() || key.chars().count() > LONGEST_KEY || !key.chars().all(allowed) || key.starts_with("aws:") {
            return Err(s3_error!(InvalidTag, "The TagKey you have provided is invalid"));
        }
        if value.chars().count() > LONGEST_VALUE || !value.chars().all(allowed) {
            return Err(s3_error!(InvalidTag, "The TagValue you have provided is invalid"));
        }
        if tags[..at].iter().any(|(other, _)| other == key) {
            return Err(s3_error!(InvalidTag, "Cannot provide multiple Tags with the same key"));
        }
    }
    Ok(tags)
}

fn allowed(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "+-=._:/@".contains(c)
}

fn shown(tags: Tags) -> TagSet {
    tags.into_iter().map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_tags_is_read_or_refused() {
        let read = |text: &str| from_header(Some(text));
        assert_eq!(from_header(None).unwrap(), []);
        assert_eq!(
            read("a=1&b%20c=d%2Fe&f=").unwrap(),
            [("a".into(), "1".into()), ("b c".into(), "d/e".into()), ("f".into(), String::new())]
        );
        let many = (0..11).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join("&");
        let long = format!("{}=v", "k".repeat(129));
        for (text, code) in [
            ("a=1&a=2", "InvalidTag"),
            ("=1", "InvalidTag"),
            ("aws:a=1", "InvalidTag"),
            ("a=%00", "InvalidTag"),
            ("a=%ff", "InvalidArgument"),
            (&long, "InvalidTag"),
            (&many, "BadRequest"),
        ] {
            assert_eq!(read(text).unwrap_err().code().as_str(), code, "{text}");
        }
    }
}
