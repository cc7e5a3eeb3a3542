//! Completions and manual pages: they know what the command line knows.

use std::process::{Command, Output};

fn gateway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gateway")).args(arguments).output().expect("the gateway runs")
}

fn said(arguments: &[&str]) -> String {
    let output = gateway(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("it speaks UTF-8")
}

/// Those that `--help` lists.
fn verbs() -> Vec<String> {
    let help = said(&["--help"]);
    let list =
        help.split("Commands:\n").nth(1).expect("it lists verbs").split("\n\n").next().expect("and ends");
    let verbs: Vec<_> =
        list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    assert!(verbs.len() >= 8, "{help}");
    verbs
}

#[test]
fn every_shell_completes_every_verb() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = said(&["completions", shell]);
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: {verb}");
        }
    }
}

#[test]
fn bash_takes_its_completions() {
    let binary = env!("CARGO_BIN_EXE_gateway");
    let script = format!(
        "set -e; source <({binary} completions bash); COMP_WORDS=(gateway che); COMP_CWORD=1; \
         _gateway gateway che gateway; echo ${{COMPREPLY[@]}}"
    );
    let output = Command::new("bash").args(["-c", &script]).output().expect("bash is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "check\n", "{output:?}");
}

#[test]
fn every_verb_has_its_manual_page() {
    let page = said(&["man"]);
    for verb in verbs() {
        assert!(page.contains(&format!("gateway\\-{verb}(1)")), "{verb}: {page}");
        if verb != "help" {
            let own = said(&["man", &verb]);
            assert!(own.contains(&format!(".TH gateway-{verb} 1")), "{own}");
        }
    }
    let unknown = gateway(&["man", "chekc"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no verb \"chekc\""));
}
