//! How errors of the crates below become failures that people read.

use ocopea_protocol::failure::TaskFailure;

/// An error of the repository.
pub fn repository(what: &str, error: &ocopea_repository::Error) -> TaskFailure {
    let code = error.code();
    if code == "repository.full" {
        return TaskFailure::permanent(code, what, error)
            .next("make room (`ocopea rm IMAGE`, then `ocopea repository collect`), then try again");
    }
    if error.is_permanent() {
        TaskFailure::permanent(code, what, error).next("see what else is affected: ocopea repository verify")
    } else {
        TaskFailure::retryable(code, what, error)
    }
}

/// An error of the cluster's API.
pub fn kubernetes(what: &str, error: &kube::Error) -> TaskFailure {
    match error {
        kube::Error::Api(status) => {
            let cause = match status.reason.as_str() {
                "" => status.message.clone(),
                // The client's own words for an answer that is no Status: a proxy's, or no Kubernetes at all.
                "Failed to parse error data" => {
                    let said = status.message.trim_matches('"').replace("\\n", " ");
                    format!("HTTP {} from something that doesn't answer as Kubernetes does: {said:.200}", status.code)
                }
                reason => format!("{} ({reason})", status.message),
            };
            match status.code {
                401 => TaskFailure::permanent("site.unauthorized", what, cause).next(
                    "the cluster no longer accepts the credentials of this context: renew them in the kubeconfig",
                ),
                // Authorizers name the user; what else forbids is admission, and no right is missing.
                403 if status.message.contains("is forbidden: ") && !status.message.contains("User \"") => {
                    TaskFailure::permanent("site.admission", what, cause).next(
                        "change the rule of the cluster that is named (a quota, a limit range, a Pod Security level, a webhook), or what it refuses",
                    )
                }
                403 => TaskFailure::permanent("site.forbidden", what, cause)
                    .next("grant that verb to the user that is named"),
                404 => TaskFailure::permanent("site.not-found", what, cause),
                409 => TaskFailure::conflict("site.conflict", what, cause),
                // Server-side apply reports an object that doesn't fit its schema as an internal error.
                500 if status.message.contains("failed to create typed patch object") => {
                    TaskFailure::permanent("site.refused", what, &status.message)
                }
                429 | 500..=599 => TaskFailure::retryable("site.busy", what, cause),
                _ => TaskFailure::permanent("site.refused", what, cause),
            }
        }
        other => TaskFailure::retryable("site.unreachable", what, chain(other))
            .next("check that the cluster runs and can be reached from here"),
    }
}

/// An error with all of its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_and_a_rule_of_admission_are_told_apart() {
        let forbidden = |message: &str| {
            let status = serde_json::from_value(
                serde_json::json!({"status": "Failure", "code": 403, "reason": "Forbidden", "message": message}),
            );
            kubernetes("can't apply service/web", &kube::Error::Api(Box::new(status.unwrap())))
        };
        let quota = forbidden("services \"web\" is forbidden: exceeded quota: few, requested: count/services=1");
        assert!(quota.code == "site.admission" && quota.next.contains("quota"), "{quota:?}");
        let pod =
            forbidden("pods \"web\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true");
        assert_eq!(pod.code, "site.admission");
        let right =
            forbidden("services is forbidden: User \"ann\" cannot create resource \"services\" in API group \"\"");
        assert!(right.code == "site.forbidden" && right.next.contains("grant"), "{right:?}");
    }
}
