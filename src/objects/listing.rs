//! Listing objects page by page, so that a bucket of millions never lies in memory at once.

use super::client::{bare, size};
use super::failure::explain;
use super::wall::{Access, refusal};
use super::{Objects, Uri};
use crate::clock::Millis;
use crate::error::{Error, Result};

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Where it is.
    pub uri: Uri,
    /// Bytes.
    pub size: u64,
    /// Quotes removed.
    pub etag: String,
    /// When it was last written.
    pub modified: Millis,
}

/// The pages of a listing, in the order of the keys' bytes.
#[derive(Debug)]
pub struct Pages {
    objects: Objects,
    prefix: Uri,
    token: Option<String>,
    done: bool,
}

impl Objects {
    /// Everything whose key begins with `prefix`; use [`Uri::folder`] to stay inside a folder.
    pub fn list(&self, prefix: &Uri) -> Pages {
        Pages { objects: self.clone(), prefix: prefix.clone(), token: None, done: false }
    }
}

impl Pages {
    /// The next page (up to 1000 objects), or `None` after the last. After an error the same page is asked for again.
    ///
    /// # Errors
    /// As the other operations; `Internal` when the server says that there is more, and not where.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>> {
        if self.done {
            return Ok(None);
        }
        // Only what the account may use is shown, also where a prefix reaches beyond its folder.
        let grants = self.objects.grants(self.prefix.bucket()).await?;
        if grants.as_ref().is_some_and(|grants| !grants.holds(self.prefix.key())) {
            return Err(refusal(&self.prefix, Access::Read));
        }
        let page = self
            .objects
            .s3
            .list_objects_v2()
            .bucket(self.prefix.bucket())
            .prefix(self.prefix.key())
            .set_continuation_token(self.token.clone())
            .send()
            .await
            .map_err(|error| explain("ListObjectsV2", &self.prefix, error))?;
        self.done = !page.is_truncated().unwrap_or(false);
        let next = page.next_continuation_token().map(str::to_string);
        if !self.done && (next.is_none() || next == self.token) {
            return Err(Error::internal(anyhow::anyhow!("the listing of {} has more and not where", self.prefix)));
        }
        self.token = next;
        let found = page.contents().iter().map(|object| Listed {
            uri: Uri::new(self.prefix.bucket(), object.key().unwrap_or_default()),
            size: size(object.size()),
            etag: bare(object.e_tag()),
            modified: object.last_modified().and_then(|at| at.to_millis().ok()).unwrap_or_default(),
        });
        let may_see = |object: &Listed| grants.as_ref().is_none_or(|grants| grants.holds(object.uri.key()));
        Ok(Some(found.filter(may_see).collect()))
    }

    /// All pages together; for prefixes we wrote ourselves and know to be small.
    pub async fn all(mut self) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        while let Some(page) = self.next().await? {
            found.extend(page);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::fake::{Fake, page, reply};
    use super::*;

    #[tokio::test]
    async fn after_a_failed_page_a_listing_goes_on_where_it_was() {
        let failures = AtomicUsize::new(0);
        let server = Fake::start(move |request| match request.query("continuation-token").as_deref() {
            None => page(&["a", "b"], Some("second")),
            // More often than the SDK tries by itself.
            Some("second") if failures.fetch_add(1, Ordering::SeqCst) < 5 => reply(503, "SlowDown"),
            Some("second") => page(&["c"], Some("third")),
            Some("third") => page(&["d"], None),
            Some(other) => panic!("asked for {other}"),
        })
        .await;
        let mut pages = server.objects().list(&Uri::new("data", ""));
        let (mut found, mut failed) = (Vec::new(), 0);
        loop {
            match pages.next().await {
                Ok(Some(page)) => found.extend(page.into_iter().map(|object| object.uri.key().to_string())),
                Ok(None) => break,
                Err(_) => failed += 1,
            }
        }
        assert_eq!(found, ["a", "b", "c", "d"]);
        assert!(failed >= 1, "a page failed before the caller's eyes");
    }

    #[tokio::test]
    async fn a_listing_that_breaks_off_is_an_error_and_no_end() {
        let server = Fake::start(|request| {
            let truncated = "<IsTruncated>true</IsTruncated>";
            assert_eq!(request.query("continuation-token"), None);
            reply(200, &format!("<ListBucketResult><Name>data</Name>{truncated}</ListBucketResult>"))
        })
        .await;
        assert!(server.objects().list(&Uri::new("data", "")).all().await.is_err());
    }
}
