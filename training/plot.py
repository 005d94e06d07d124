"""Draws the loss curves of training logs, one behind the other, as an SVG, without further packages:  python plot.py log-1.json log-2.json loss.svg"""
import json
import math
import sys

W, H, LEFT, BOTTOM = 720, 320, 50, 40
points, end = [], 0
for run in map(json.load, map(open, sys.argv[1:-1])):
    points += [p | dict(canvases=end + p["canvases"]) for p in run["log"] if p["step"] >= 50]
    end += run["canvases"]
decades = [math.floor(math.log10(min(p["nats"] for p in points))), math.ceil(math.log10(max(p["nats_noise"] for p in points)))]
across = lambda canvases: LEFT + (W - LEFT - 10) * canvases / end
up = lambda nats: 10 + (H - BOTTOM - 10) * (decades[1] - math.log10(nats)) / (decades[1] - decades[0])
path = lambda key: " ".join(f"{across(p['canvases']):.1f},{up(p[key]):.1f}" for p in points)
line = lambda key, color: f'<polyline fill="none" stroke="{color}" stroke-width="1.5" points="{path(key)}"/>'
out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{W}" height="{H}" font-family="sans-serif" font-size="11">', f'<rect width="{W}" height="{H}" fill="white"/>']
for d in range(decades[0], decades[1] + 1):
    y = up(10 ** d)
    out.append(f'<line x1="{LEFT}" x2="{W - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/><text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{10 ** d:g}</text>')
for i in range(6):
    out.append(f'<text x="{across(end * i / 5):.0f}" y="{H - BOTTOM + 16}" text-anchor="{"end" if i == 5 else "middle"}">{end * i / 5 / 1000:.0f} k</text>')
out += [line("nats_noise", "#c33"), line("nats", "#36c"), f'<text x="{W / 2}" y="{H - 8}" text-anchor="middle">canvases trained</text>',
        f'<text x="{W - 20}" y="24" text-anchor="end" fill="#c33">nats per canvas, from pure noise</text>', f'<text x="{W - 20}" y="40" text-anchor="end" fill="#36c">nats per canvas, all noise levels</text>', "</svg>"]
open(sys.argv[-1], "w").write("\n".join(out) + "\n")
