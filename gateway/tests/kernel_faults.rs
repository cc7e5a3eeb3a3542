//! Wrong documents about the kernel half and what the gateway says about each, to the letter and the column.

mod faults;

const FAULTS: &[faults::Fault] = &[
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"monitor": ["over_budgt", "pass", "shed", "shed"]}}"#,
        &[
            r#"1:75: kernel.monitor[0]: unknown verdict that drops "over_budgt": did you mean "over_budget"?"#,
            r#"1:89: kernel.monitor[1]: unknown verdict that drops "pass": known are denied, over_budget, penalised, cookie_sent, shed, fragment, over_ceiling, contended"#,
            r"1:105: kernel.monitor[3]: stands in this list already: remove it",
        ],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"monitor": "shed"}}"#,
        &[r#"1:74: kernel.monitor: must be true or false, is the string "shed""#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"escalation": "slowly"}}"#,
        &[r#"1:77: kernel.escalation: unknown escalation "slowly": did you mean "slow"?"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"escalation": "ban"}}"#,
        &[r#"1:77: kernel.escalation: unknown escalation "ban": known are off, slow, drop"#],
    ),
    (
        r#"{"routes": [{"path": "/", "backend": "http://a"}], "kernel": {"packet_burst": 5}}"#,
        &[r"1:79: kernel.packet_burst: there is no ceiling: write `packets_per_second` too"],
    ),
];

#[test]
fn every_fault_has_its_message() {
    faults::check(FAULTS);
}
