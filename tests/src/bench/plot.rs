//! Pictures: blackout against size, a client's latency through a move, where the time goes. SVG whose letters are the
//! viewer's own.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::CONTENDERS;
use super::host::Failure;
use super::report::{Series, Spread};

const SIZE: (u32, u32) = (760, 440);
const FONT: (&str, u32) = ("sans-serif", 14);
/// Of the contenders, in their order: distinct to those who see colours otherwise, too (Okabe and Ito).
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(90, 90, 90),
];
/// Before the blackout a pod still serves; so it does while pages follow.
pub const SERVING: [&str; 3] = ["preflight", "prepare", "pages"];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Each picture with its name, as far as there is something to be seen.
pub fn all(results: &[Series]) -> Result<Vec<(&'static str, String)>, Failure> {
    let redis: Vec<&Series> =
        results.iter().filter(|series| series.workload == "redis" && !series.moves.is_empty()).collect();
    let Some(largest) = redis.iter().map(|series| series.megabytes).max() else { return Ok(Vec::new()) };
    let large: Vec<&Series> = redis.iter().copied().filter(|series| series.megabytes == largest).collect();
    Ok(vec![
        ("blackout.svg", picture(|area| blackout(area, &redis))?),
        ("latency.svg", picture(|area| latency(area, &large))?),
        ("phases.svg", picture(|area| phases(area, &large))?),
    ])
}

fn picture(draw: impl Fn(&Area<'_>) -> Drawn) -> Result<String, Failure> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let wrong = |e: Box<dyn std::error::Error>| Failure(format!("cannot draw: {e}"));
        area.fill(&WHITE).map_err(|e| wrong(e.into()))?;
        draw(&area).map_err(wrong)?;
        area.present().map_err(|e| wrong(e.into()))?;
    }
    Ok(svg)
}

/// Medians, with a line from the least to the most.
fn blackout(area: &Area<'_>, redis: &[&Series]) -> Drawn {
    let spreads = || redis.iter().filter_map(|series| series.blackout());
    let least = spreads().map(|s| s.min).fold(f64::MAX, f64::min).max(1.0) / 1.5;
    let most = spreads().map(|s| s.max).fold(1.0, f64::max) * 1.5;
    let sizes = || redis.iter().map(|series| series.megabytes as f64);
    let (first, last) = (sizes().fold(f64::MAX, f64::min) / 1.3, sizes().fold(1.0, f64::max) * 1.3);
    let mut chart = ChartBuilder::on(area)
        .caption("What a client of redis waits, by the size of its data", FONT)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((first..last).log_scale(), (least..most).log_scale())?;
    chart.configure_mesh().x_desc("redis's data, MB").y_desc("blackout, ms").max_light_lines(0).draw()?;
    for name in CONTENDERS {
        let mut own: Vec<(f64, Spread)> = redis
            .iter()
            .filter(|series| series.contender == name)
            .filter_map(|series| Some((series.megabytes as f64, series.blackout()?)))
            .collect();
        if own.is_empty() {
            continue;
        }
        own.sort_by(|a, b| a.0.total_cmp(&b.0));
        let color = color(name);
        chart
            .draw_series(LineSeries::new(own.iter().map(|(size, s)| (*size, s.median)), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(3)));
        chart.draw_series(own.iter().map(|(size, s)| Circle::new((*size, s.median), 4, color.filled())))?;
        chart.draw_series(
            own.iter().map(|(size, s)| PathElement::new([(*size, s.min.max(1.0)), (*size, s.max)], color)),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()?;
    Ok(())
}

/// The move of each contender whose blackout is nearest to the median.
fn latency(area: &Area<'_>, large: &[&Series]) -> Drawn {
    let typical: Vec<_> = large
        .iter()
        .filter_map(|series| {
            let median = series.blackout()?.median;
            let distance = |blackout: f64| (blackout - median).abs();
            let found = series.moves.iter().min_by(|a, b| distance(a.blackout_ms).total_cmp(&distance(b.blackout_ms)));
            Some((series.contender.as_str(), found?))
        })
        .collect();
    let most = typical.iter().map(|(_, m)| m.blackout_ms).fold(100.0, f64::max);
    let size = large.first().map_or(0, |series| series.megabytes);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("A client's latency through a move of redis with {size} MB"), FONT)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(-250.0..most + 600.0, (0.03..most * 2.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("request made, ms after the begin of the blackout")
        .y_desc("answer after, ms")
        .max_light_lines(0)
        .draw()?;
    for (name, one) in typical {
        let color = color(name);
        // A point for each 15 ms will do; the longest of them.
        let points = one.latency.chunks(3).filter_map(|chunk| chunk.iter().max_by(|a, b| a.1.total_cmp(&b.1)));
        let points: Vec<_> = points.filter(|point| point.0 <= most + 600.0).collect();
        chart
            .draw_series(points.iter().map(|point| Circle::new((point.0, point.1), 2, color.mix(0.6).filled())))?
            .label(name)
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, color.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(FONT)
        .draw()?;
    Ok(())
}

/// Medians of the phases in which the server stands still, end to end, and the client's median beside them.
fn phases(area: &Area<'_>, large: &[&Series]) -> Drawn {
    type Row<'a> = (&'a str, Vec<(String, f64)>, f64);
    let rows: Vec<Row<'_>> = large
        .iter()
        .filter_map(|series| {
            let names = series.moves.first()?.phases.iter().map(|(name, _)| name);
            let still = names.filter(|name| !SERVING.contains(&name.as_str())).map(|name| {
                let of = |m: &super::report::Move| Some(m.phases.iter().find(|(other, _)| other == name)?.1);
                let median = Spread::of(series.moves.iter().filter_map(of)).map_or(0.0, |spread| spread.median);
                (name.clone(), median)
            });
            Some((series.contender.as_str(), still.collect(), series.blackout()?.median))
        })
        .collect();
    let sum = |parts: &[(String, f64)]| parts.iter().map(|part| part.1).sum::<f64>();
    let most = rows.iter().map(|(_, parts, client)| sum(parts).max(*client)).fold(1.0, f64::max) * 1.05;
    let size = large.first().map_or(0, |series| series.megabytes);
    let area = area.titled(&format!("Where the blackout goes: redis with {size} MB, medians"), FONT)?;
    let (left, right, top) = (90, 730, 20);
    let scale = f64::from(right - left) / most;
    let x = |ms: f64| left + (ms * scale) as i32;
    let each = 340 / i32::try_from(rows.len().max(1)).unwrap_or(1);
    let mut shades: Vec<&str> = Vec::new();
    for (row, (name, parts, client)) in (0..).zip(&rows) {
        let y = top + row * each;
        let (low, high) = (y + each / 6, y + each * 2 / 3);
        area.draw(&Text::new(*name, (12, low + 4), FONT))?;
        let mut at = 0.0;
        for (phase, ms) in parts {
            let shade = shades.iter().position(|known| known == phase).unwrap_or_else(|| {
                shades.push(phase);
                shades.len() - 1
            });
            area.draw(&Rectangle::new(
                [(x(at), low), (x(at + ms), high)],
                COLORS[shade % COLORS.len()].mix(0.8).filled(),
            ))?;
            at += ms;
        }
        area.draw(&PathElement::new([(x(*client), low - 4), (x(*client), high + 4)], BLACK.stroke_width(2)))?;
        area.draw(&Text::new(format!("{at:.0} ms; the client: {client:.0} ms"), (left, high + 4), ("sans-serif", 12)))?;
    }
    for (n, phase) in (0..).zip(&shades) {
        let (x, y) = (left + n * 92, top + 350);
        let color = COLORS[n as usize % COLORS.len()].mix(0.8);
        area.draw(&Rectangle::new([(x, y), (x + 12, y + 12)], color.filled()))?;
        area.draw(&Text::new(*phase, (x + 16, y), ("sans-serif", 13)))?;
    }
    Ok(())
}

fn color(contender: &str) -> RGBColor {
    COLORS[CONTENDERS.iter().position(|name| *name == contender).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::{Latency, Move};

    #[test]
    fn three_small_pictures_or_none() {
        let mut results = Vec::new();
        for size in [20, 700] {
            for name in CONTENDERS {
                let mut series = Series::new("redis", size, name, true);
                let phases = ["prepare", "freeze", "dump", "restore"].map(|phase| (phase.to_owned(), 10.0)).to_vec();
                let latency = (0..1000).map(|n| Latency(f64::from(n) * 5.0 - 300.0, 0.1 + f64::from(n % 7))).collect();
                series.moves.push(Move { blackout_ms: 40.0, phases, latency, ..Move::default() });
                results.push(series);
            }
        }
        let drawn = all(&results).expect("they can be drawn");
        assert_eq!(drawn.len(), 3);
        for (name, svg) in drawn {
            assert!(svg.trim_end().ends_with("</svg>") && svg.len() < 100_000, "{name} has {} bytes", svg.len());
            assert!(svg.contains("podd"), "{name} names the contenders");
        }
        assert!(all(&[]).expect("there is nothing to draw").is_empty());
    }
}
