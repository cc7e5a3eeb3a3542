//! Wrong documents about the access log and what the gateway says about each, to the letter and the column.

mod faults;

const FAULTS: &[faults::Fault] = &[
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "access_log": true}"#,
        &["1:66: access_log: must be an object, is true"],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "access_log": {"format": "jsn", "to": "access.log", "sample": 0}}"#,
        &[
            r#"1:77: access_log.format: unknown format "jsn": did you mean "json"?"#,
            r#"1:90: access_log.to: "access.log" is neither "stdout" nor a path: write "./access.log" for a file here"#,
            "1:114: access_log.sample: must be a whole number from 1 to 4294967295, is the number 0",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "access_log": {"format": 1, "to": "/var/log/", "sampel": 2}}"#,
        &[
            r#"1:77: access_log.format: must be one of "combined", "json", is the number 1"#,
            r#"1:86: access_log.to: "/var/log/" is no path of a file"#,
            r#"1:99: access_log: unknown key "sampel": did you mean `sample`?"#,
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "trace_context": "on"}"#,
        &[r#"1:69: trace_context: unknown trace_context "on": known are off, propagate, generate"#],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}
