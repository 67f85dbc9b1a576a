//! The compiled form of the SPD.

/// Answers as the linear search does, faster.
pub struct Classifier {
    _todo: (),
}
