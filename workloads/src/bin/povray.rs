//! A ray tracer: spheres, boxes, a plane, procedural textures, reflection, refraction. Follows 511.povray_r.
//!
//! As there: rays are intersected with objects of several kinds behind virtual calls, in doubles; textures come from noise; shadows,
//! mirrors and glass send further rays. Its behaviour: scalar floating point with square roots and divisions, unpredictable
//! branches and indirect calls, recursion, data that fits the first caches.
//!
//! What differs: a scene of its own, without a scene language; four kinds of objects.

use std::process::ExitCode;

use sevlab_workloads::guest::{Guest, Param, Random, Sum, Values, cos_sin};

const GUEST: Guest = Guest {
    name: "povray",
    about: "Traces rays through a scene of mirrors, glass and textured solids.",
    params: &[
        Param {
            name: "width",
            what: "pixels in a row; three quarters as many rows",
            values: [48, 160, 420],
            limits: (4, 10_000),
        },
        Param {
            name: "objects",
            what: "spheres and boxes",
            values: [20, 30, 60],
            limits: (1, 10_000),
        },
        Param {
            name: "seed",
            what: "seed of the scene",
            values: [1, 1, 1],
            limits: (0, u64::MAX),
        },
    ],
};

#[derive(Clone, Copy, Debug)]
struct Vector(f64, f64, f64);

impl Vector {
    fn plus(self, o: Self, by: f64) -> Self {
        Self(self.0 + by * o.0, self.1 + by * o.1, self.2 + by * o.2)
    }
    fn minus(self, o: Self) -> Self {
        self.plus(o, -1.0)
    }
    fn dot(self, o: Self) -> f64 {
        self.0 * o.0 + self.1 * o.1 + self.2 * o.2
    }
    fn times(self, by: f64) -> Self {
        Self(self.0 * by, self.1 * by, self.2 * by)
    }
    fn each(self, o: Self) -> Self {
        Self(self.0 * o.0, self.1 * o.1, self.2 * o.2)
    }
    fn unit(self) -> Self {
        self.times(1.0 / self.dot(self).sqrt())
    }
}

struct Ray {
    from: Vector,
    /// Of length 1.
    to: Vector,
}

impl Ray {
    fn at(&self, t: f64) -> Vector {
        self.from.plus(self.to, t)
    }
}

const NEAR: f64 = 1e-6;

trait Shape {
    /// How far along the ray it is hit, beyond [`NEAR`].
    fn hit(&self, ray: &Ray) -> Option<f64>;
    fn normal(&self, point: Vector) -> Vector;
    /// How far a point is from the surface.
    fn distance(&self, point: Vector) -> f64;
}

struct Sphere {
    centre: Vector,
    radius: f64,
}

impl Shape for Sphere {
    fn hit(&self, ray: &Ray) -> Option<f64> {
        let d = ray.from.minus(self.centre);
        let b = d.dot(ray.to);
        let root = b * b - d.dot(d) + self.radius * self.radius;
        if root < 0.0 {
            return None;
        }
        let root = root.sqrt();
        [-b - root, -b + root].into_iter().find(|t| *t > NEAR)
    }
    fn normal(&self, point: Vector) -> Vector {
        point.minus(self.centre).unit()
    }
    fn distance(&self, point: Vector) -> f64 {
        let d = point.minus(self.centre);
        (d.dot(d).sqrt() - self.radius).abs()
    }
}

/// The floor.
struct Plane {
    height: f64,
}

impl Shape for Plane {
    fn hit(&self, ray: &Ray) -> Option<f64> {
        let t = (self.height - ray.from.1) / ray.to.1;
        (ray.to.1 != 0.0 && t > NEAR && t < 1e6).then_some(t)
    }
    fn normal(&self, _: Vector) -> Vector {
        Vector(0.0, 1.0, 0.0)
    }
    fn distance(&self, point: Vector) -> f64 {
        (point.1 - self.height).abs()
    }
}

/// With its sides along the axes.
struct Cuboid {
    low: Vector,
    high: Vector,
}

impl Shape for Cuboid {
    fn hit(&self, ray: &Ray) -> Option<f64> {
        let (mut near, mut far) = (f64::NEG_INFINITY, f64::INFINITY);
        for (from, to, low, high) in [
            (ray.from.0, ray.to.0, self.low.0, self.high.0),
            (ray.from.1, ray.to.1, self.low.1, self.high.1),
            (ray.from.2, ray.to.2, self.low.2, self.high.2),
        ] {
            if to == 0.0 {
                if from < low || from > high {
                    return None;
                }
                continue;
            }
            let (a, b) = ((low - from) / to, (high - from) / to);
            let (a, b) = if a < b { (a, b) } else { (b, a) };
            near = if a > near { a } else { near };
            far = if b < far { b } else { far };
        }
        if near > far {
            return None;
        }
        [near, far].into_iter().find(|t| *t > NEAR)
    }
    fn normal(&self, p: Vector) -> Vector {
        let sides = [
            (self.low.0 - p.0, Vector(-1.0, 0.0, 0.0)),
            (p.0 - self.high.0, Vector(1.0, 0.0, 0.0)),
            (self.low.1 - p.1, Vector(0.0, -1.0, 0.0)),
            (p.1 - self.high.1, Vector(0.0, 1.0, 0.0)),
            (self.low.2 - p.2, Vector(0.0, 0.0, -1.0)),
            (p.2 - self.high.2, Vector(0.0, 0.0, 1.0)),
        ];
        let mut best = sides[0];
        for side in sides {
            if side.0 > best.0 {
                best = side;
            }
        }
        best.1
    }
    fn distance(&self, p: Vector) -> f64 {
        let out = |v: f64, low: f64, high: f64| {
            if low - v > v - high {
                low - v
            } else {
                v - high
            }
        };
        let d = [
            out(p.0, self.low.0, self.high.0),
            out(p.1, self.low.1, self.high.1),
            out(p.2, self.low.2, self.high.2),
        ];
        d.into_iter().fold(f64::NEG_INFINITY, f64::max).abs()
    }
}

#[derive(Clone, Copy)]
enum Texture {
    Plain(Vector),
    Checker,
    /// Veins of noise.
    Marble(Vector),
    Mirror(Vector),
    Glass,
}

struct Thing {
    shape: Box<dyn Shape>,
    texture: Texture,
}

struct Scene {
    things: Vec<Thing>,
    lights: [Vector; 2],
    noise: Vec<f64>,
    rays: u64,
    worst: f64,
}

impl Scene {
    fn new(count: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let noise = (0..4096).map(|_| random.unit()).collect();
        let mut things = vec![Thing {
            shape: Box::new(Plane { height: 0.0 }),
            texture: Texture::Checker,
        }];
        for n in 0..count {
            let mut place = |low: f64, high: f64| low + (high - low) * random.unit();
            let (x, z, size) = (place(-9.0, 9.0), place(-2.0, 16.0), place(0.4, 1.4));
            let colour = Vector(place(0.3, 1.0), place(0.3, 1.0), place(0.3, 1.0));
            let shape: Box<dyn Shape> = if n % 3 == 2 {
                Box::new(Cuboid {
                    low: Vector(x - size, 0.0, z - size),
                    high: Vector(x + size, 2.0 * size, z + size),
                })
            } else {
                Box::new(Sphere {
                    centre: Vector(x, size + place(0.0, 2.0), z),
                    radius: size,
                })
            };
            let texture = match n % 5 {
                0 => Texture::Mirror(colour),
                1 => Texture::Marble(colour),
                2 | 3 => Texture::Plain(colour),
                _ => Texture::Glass,
            };
            things.push(Thing { shape, texture });
        }
        Self {
            things,
            lights: [Vector(-12.0, 16.0, -10.0), Vector(10.0, 9.0, -6.0)],
            noise,
            rays: 0,
            worst: 0.0,
        }
    }

    /// The first thing on the way.
    fn first(&mut self, ray: &Ray) -> Option<(f64, usize)> {
        self.rays += 1;
        let mut best: Option<(f64, usize)> = None;
        for (n, thing) in self.things.iter().enumerate() {
            if let Some(t) = thing.shape.hit(ray)
                && best.is_none_or(|(b, _)| t < b)
            {
                best = Some((t, n));
            }
        }
        best
    }

    /// Smooth noise from a lattice of random numbers, 0 to 1.
    fn noise(&self, p: Vector) -> f64 {
        let cell = |v: f64| {
            let whole = v as i64 - i64::from(v < 0.0);
            let part = v - whole as f64;
            (whole, part * part * (3.0 - 2.0 * part))
        };
        let ((x, fx), (y, fy), (z, fz)) = (cell(p.0), cell(p.1), cell(p.2));
        let mut sum = 0.0;
        for corner in 0..8 {
            let (dx, dy, dz) = (corner & 1, corner >> 1 & 1, corner >> 2);
            let hash = (x + dx).wrapping_mul(73_856_093)
                ^ (y + dy).wrapping_mul(19_349_663)
                ^ (z + dz).wrapping_mul(83_492_791);
            let w = |f: f64, d: i64| if d == 1 { f } else { 1.0 - f };
            sum += w(fx, dx) * w(fy, dy) * w(fz, dz) * self.noise[(hash & 4095) as usize];
        }
        sum
    }

    fn colour(&self, texture: Texture, p: Vector) -> Vector {
        match texture {
            Texture::Plain(c) | Texture::Mirror(c) => c,
            Texture::Glass => Vector(1.0, 1.0, 1.0),
            Texture::Checker => {
                let odd = |v: f64| (v + 1000.0) as i64 & 1;
                if odd(p.0) ^ odd(p.2) == 0 {
                    Vector(0.9, 0.9, 0.85)
                } else {
                    Vector(0.15, 0.2, 0.25)
                }
            }
            Texture::Marble(c) => {
                let (mut sum, mut scale) = (0.0, 1.0);
                for _ in 0..4 {
                    sum += self.noise(p.times(2.0 * scale)) / scale;
                    scale *= 2.0;
                }
                let vein = 0.5 + 0.5 * cos_sin(4.0 * p.0 + 5.0 * sum).1;
                c.times(0.35 + 0.65 * vein)
            }
        }
    }

    fn trace(&mut self, ray: &Ray, depth: u32) -> Vector {
        let Some((t, n)) = self.first(ray) else {
            let up = 0.5 + 0.5 * ray.to.1;
            return Vector(0.55, 0.7, 0.95).times(0.4 + 0.6 * up);
        };
        let point = ray.at(t);
        let off = self.things[n].shape.distance(point) / (1.0 + t);
        if off > self.worst || off.is_nan() {
            self.worst = off;
        }
        let texture = self.things[n].texture;
        let mut normal = self.things[n].shape.normal(point);
        let inside = normal.dot(ray.to) > 0.0;
        if inside {
            normal = normal.times(-1.0);
        }
        let own = self.colour(texture, point);
        let mut light = own.times(0.15);
        for at in self.lights {
            let way = at.minus(point);
            let far = way.dot(way).sqrt();
            let to = way.times(1.0 / far);
            let slant = normal.dot(to);
            let shadow = Ray { from: point, to };
            if slant > 0.0 && self.first(&shadow).is_none_or(|(t, _)| t > far) {
                light = light.plus(own, 0.42 * slant);
                let shine = to.minus(ray.to).unit().dot(normal);
                let shine = shine * shine * shine * shine;
                light = light.plus(Vector(1.0, 1.0, 1.0), 0.2 * shine * shine * shine * shine);
            }
        }
        if depth == 0 {
            return light;
        }
        let back = ray.to.plus(normal, -2.0 * normal.dot(ray.to));
        let mirrored = Ray {
            from: point,
            to: back.unit(),
        };
        match texture {
            Texture::Mirror(c) => light
                .times(0.3)
                .plus(self.trace(&mirrored, depth - 1).each(c), 0.65),
            Texture::Glass => {
                let ratio = if inside { 1.5 } else { 1.0 / 1.5 };
                let cos = -normal.dot(ray.to);
                let root = 1.0 - ratio * ratio * (1.0 - cos * cos);
                if root < 0.0 {
                    return self.trace(&mirrored, depth - 1);
                }
                let to = ray.to.times(ratio).plus(normal, ratio * cos - root.sqrt());
                let through = Ray {
                    from: point,
                    to: to.unit(),
                };
                let m = 1.0 - cos;
                let part = 0.04 + 0.96 * m * m * m * m * m;
                let seen = self.trace(&through, depth - 1).times(1.0 - part);
                seen.plus(self.trace(&mirrored, depth - 1), part)
            }
            _ => light,
        }
    }
}

fn main() -> ExitCode {
    GUEST.main(run)
}

fn run(values: &Values) -> Result<String, String> {
    let mut scene = Scene::new(values.size("objects"), values.get("seed"));
    let width = values.size("width");
    let height = width * 3 / 4;
    let (mut sum, mut total) = (Sum::default(), 0.0);
    for y in 0..height {
        for x in 0..width {
            let mut pixel = Vector(0.0, 0.0, 0.0);
            // Four rays a pixel.
            for sub in 0..4 {
                let u = (x as f64 + 0.25 + 0.5 * f64::from(sub & 1)) / width as f64 - 0.5;
                let v = 0.5 - (y as f64 + 0.25 + 0.5 * f64::from(sub >> 1)) / height as f64;
                let to = Vector(1.6 * u, 1.2 * v - 0.25, 1.2).unit();
                let from = Vector(0.0, 4.0, -12.0);
                pixel = pixel.plus(scene.trace(&Ray { from, to }, 5), 0.25);
            }
            for c in [pixel.0, pixel.1, pixel.2] {
                if !(0.0..8.0).contains(&c) {
                    return Err(format!("pixel {x}, {y}: {pixel:?}"));
                }
                let c = if c > 1.0 { 1.0 } else { c };
                total += c;
                sum.add((c * 255.0 + 0.5) as u64);
            }
        }
    }
    if scene.worst.is_nan() || scene.worst > 1e-9 {
        return Err(format!("a ray ended {} away from what it hit", scene.worst));
    }
    let mean = total / (3 * width * height) as f64;
    Ok(format!(
        "{width} x {height} pixels, {} rays\nmean {mean:.6}\nimage {sum}",
        scene.rays
    ))
}
