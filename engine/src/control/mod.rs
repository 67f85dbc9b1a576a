//! The operator's side: configuration, the control socket, transactions, reports.
