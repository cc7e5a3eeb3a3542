//! What the tests of wrong documents have in common.

use gateway::config::{self, Error};

/// A document and the lines about it, without the file's name.
pub type Fault = (&'static str, &'static [&'static str]);

#[track_caller]
pub fn check(faults: &[Fault]) {
    for (document, expected) in faults {
        let error = config::parse(document, "f.json").expect_err(document);
        let printed = error.to_string();
        let lines: Vec<_> =
            printed.lines().map(|line| line.strip_prefix("f.json:").expect("the file's name")).collect();
        assert_eq!(&lines, expected, "{document}");
        assert!(matches!(error, Error::Invalid { .. }), "{document}");
    }
}
