//! URLs without their secrets, for messages and logs.

use super::Secret;

/// A URL whose password, and every value of its query, is replaced.
pub(super) fn redacted(url: &Secret) -> String {
    const HIDDEN: &str = "***";
    let Some((scheme, rest)) = url.expose().split_once("://") else { return HIDDEN.to_string() };
    // A password may hold any character that its owner forgot to encode: only what follows the last `@` is none.
    let (who, place) = rest.rsplit_once('@').map_or((None, rest), |(who, place)| (Some(who), place));
    let who = who.map_or_else(String::new, |who| match who.split_once(':') {
        Some((user, _)) if !user.contains('?') => format!("{user}:{HIDDEN}@"),
        None if !who.contains('?') => format!("{who}@"),
        _ => format!("{HIDDEN}@"),
    });
    let (place, query) = place.split_once('?').map_or((place, None), |(place, query)| (place, Some(query)));
    let query = query.map_or_else(String::new, |query| {
        let names = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.0));
        format!("?{}", names.map(|name| format!("{name}={HIDDEN}")).collect::<Vec<_>>().join("&"))
    });
    format!("{scheme}://{who}{place}{query}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn host_and_database_are_shown_and_secrets_are_not() {
        let shown = |url: &str| redacted(&Secret::new(url));
        assert_eq!(shown("postgres://tune:hunter2@db:5432/jobs"), "postgres://tune:***@db:5432/jobs");
        assert_eq!(shown("postgres://db/jobs"), "postgres://db/jobs");
        assert_eq!(shown("postgres://tune@db/jobs"), "postgres://tune@db/jobs");
        assert_eq!(
            shown("postgres://tune@db/jobs?password=hunter2&sslmode=require"),
            "postgres://tune@db/jobs?password=***&sslmode=***"
        );
        assert_eq!(shown("sqlite:///data/tunesmith.db"), "sqlite:///data/tunesmith.db");
        assert_eq!(shown("postgres://db/jobs?password=hunter2&user=a@b"), "postgres://***@b");
        assert_eq!(shown("hunter2"), "***");
    }

    proptest! {
        #[test]
        fn no_password_is_ever_shown(password in "[!-~]{8,24}") {
            let shown = redacted(&Secret::new(format!("postgres://u:{password}@h/d")));
            prop_assert!(!shown.contains(&password), "{shown}");
        }
    }
}
