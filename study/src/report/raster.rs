//! Figures as PNG, with a font that sevlab brings along: the same pixels everywhere.

use std::sync::{Arc, OnceLock};

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

/// Pixels of the picture for one of the figure.
const SCALE: f32 = 3.0;

fn fonts() -> Arc<fontdb::Database> {
    static FONTS: OnceLock<Arc<fontdb::Database>> = OnceLock::new();
    let make = || {
        let mut fonts = fontdb::Database::new();
        fonts.load_font_data(dejavu::sans::regular().to_vec());
        fonts.load_font_data(dejavu::sans::bold().to_vec());
        fonts.set_sans_serif_family("DejaVu Sans");
        Arc::new(fonts)
    };
    Arc::clone(FONTS.get_or_init(make))
}

/// The PNG of an SVG, or why there is none.
pub fn png(svg: &str) -> Result<Vec<u8>, String> {
    let options = Options {
        fontdb: fonts(),
        font_family: "DejaVu Sans".to_owned(),
        ..Options::default()
    };
    let tree = Tree::from_str(svg, &options).map_err(|e| e.to_string())?;
    let size = tree.size();
    let pixels = |length: f32| (length * SCALE).ceil() as u32;
    let mut map = Pixmap::new(pixels(size.width()), pixels(size.height()))
        .ok_or_else(|| "a figure without an area".to_owned())?;
    resvg::render(
        &tree,
        Transform::from_scale(SCALE, SCALE),
        &mut map.as_mut(),
    );
    map.encode_png().map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::svg::{Anchor, Canvas, For};

    #[test]
    fn text_and_bars_leave_ink() {
        let draw = |text: &str| {
            let mut canvas = Canvas::new(60.0);
            canvas.text(2.0, 14.0, Anchor::Start, "t", text);
            canvas.bar(0.0, 18.0, 30.0, 2.0, "c0", "");
            png(&canvas.finish(20.0, "", For::Paper)).expect("a picture")
        };
        let (with, without) = (draw("Wgq"), draw(""));
        assert!(with.starts_with(b"\x89PNG") && with.len() > without.len());
        let map = Pixmap::decode_png(&with).expect("a picture");
        assert_eq!((map.width(), map.height()), (180, 60));
        let bar = map.pixel(10, 57).expect("a pixel");
        assert_eq!((bar.red(), bar.green(), bar.blue()), (0x3b, 0x76, 0xaf));
        let ground = map.pixel(170, 57).expect("a pixel");
        assert_eq!(
            (ground.red(), ground.green(), ground.blue()),
            (255, 255, 255)
        );
    }
}
