// Builds the package into the folder that is named.
import { build } from "esbuild";
import { spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const folder = process.argv[2];
const options = {
  bundle: true,
  minify: true,
  charset: "utf8",
  target: "es2020",
  legalComments: "none",
  banner: { js: "// Limpet, Apache-2.0: https://github.com/limpet-auth/limpet" },
  logLevel: "warning",
};
const tsc = join(createRequire(import.meta.url).resolve("typescript"), "../tsc.js");
const types = mkdtempSync(join(tmpdir(), "limpet-types-"));
const checked = spawnSync(process.execPath, [tsc, "--declaration", "--emitDeclarationOnly", "--outDir", types], { stdio: "inherit" });
if (checked.status) process.exit(1); // tsc has said why
mkdirSync(folder, { recursive: true });
copyFileSync(join(types, "limpet.d.ts"), join(folder, "limpet.d.ts"));
rmSync(types, { recursive: true });
await build({ ...options, entryPoints: ["src/limpet.ts"], format: "esm", outfile: join(folder, "limpet.js") });
await build({ ...options, entryPoints: ["src/worker.ts"], format: "iife", outfile: join(folder, "worker.js") });
