//! The page that shows the document.

use crate::support::{http, with_app};

#[test]
fn the_documentation_page_opens_without_a_key_and_loads_nothing_from_elsewhere() {
    with_app(async |app| {
        let get = async |path: &str| http::send(app.address, "GET", path, &[], b"").await;
        let moved = get("/docs").await;
        assert_eq!((moved.status, moved.header("location")), (303, Some("/docs/")));
        let page = get("/docs/").await;
        assert_eq!(page.status, 200);
        assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'self';"));
        let text = page.text();
        let links: Vec<&str> = ["src=\"", "href=\""]
            .iter()
            .flat_map(|before| text.split(before).skip(1).filter_map(|rest| rest.split('"').next()))
            .collect();
        assert!(links.len() >= 4, "{text}");
        let mut scripts = String::new();
        for link in links {
            assert!(!link.contains("//"), "{link} lies elsewhere");
            let asset = get(&format!("/docs/{}", link.trim_start_matches("./"))).await;
            assert_eq!(asset.status, 200, "{link}");
            assert!(!asset.body.is_empty(), "{link}");
            if link.ends_with("swagger-initializer.js") {
                scripts.push_str(&asset.text());
            }
        }
        assert!(scripts.contains("/openapi.json"), "the page shows the service's document: {scripts}");
        assert!(scripts.contains("\"validatorUrl\": \"none\""), "{scripts}");
        let document = get("/openapi.json").await;
        assert_eq!(document.json()["info"]["title"], "Tunesmith");
        app
    });
}
