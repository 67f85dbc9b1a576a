//! ECN through tunnels against the tables of RFC 6040 (`vectors/ecn_dscp_tables.json`).

use std::path::Path;

use adit_engine::transform::ecn::{self, Ecn};
use serde_json::Value;

fn vectors(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

#[test]
fn egress_and_ingress_tables() {
    let tables = vectors("ecn_dscp_tables.json");
    let index = vectors("INDEX.json");
    let entry =
        index.as_array().unwrap().iter().find(|entry| entry["file"] == "ecn_dscp_tables.json").unwrap();
    let codepoint = |name: &str| tables["codepoints"][name].as_u64().unwrap() as u8;

    // Figure 4, 16 cells; nothing is skipped. Bits above ECN (the DSCP) must not matter.
    let mut ran = 0;
    let mut seen = std::collections::BTreeSet::new();
    for cell in tables["egress"].as_array().unwrap() {
        let (inner, outer) = (codepoint(text(cell, "inner")), codepoint(text(cell, "outer")));
        let result = match text(cell, "result") {
            "DROP" => None,
            name => Some(codepoint(name)),
        };
        for dscp in [0, 46 << 2, 63 << 2] {
            assert_eq!(ecn::egress(dscp | inner, outer), result, "{cell}");
            assert_eq!(ecn::egress(inner, dscp | outer), result, "{cell}");
            assert_eq!(ecn::is_suspect(dscp | inner, outer), text(cell, "alarm") != "none", "{cell}");
        }
        assert!(seen.insert((inner, outer)), "{cell} twice");
        ran += 1;
    }
    let skipped = 0;
    assert_eq!(ran + skipped, entry["count"].as_u64().unwrap());

    // Figure 3.
    for (mode, ecn) in [("ingress_normal_mode", Ecn::Copy), ("ingress_compatibility_mode", Ecn::Clear)] {
        let rows = tables[mode].as_object().unwrap();
        assert_eq!(rows.len(), 4);
        for (inner, outer) in rows {
            let outer = codepoint(outer.as_str().unwrap());
            assert_eq!(ecn.ingress(codepoint(inner)), outer);
            assert_eq!(ecn.ingress(46 << 2 | codepoint(inner)), outer);
        }
    }
}
