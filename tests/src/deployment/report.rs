//! What a deployment came to, in words and as a picture.
