// The pages' build. Everything is a file of its own with a hash in its name: no inline script, no data: script.
import react from '@vitejs/plugin-react'
import { defineConfig } from 'vite'

export default defineConfig({
  plugins: [react()],
  build: { outDir: 'build', emptyOutDir: true, target: 'es2022', assetsInlineLimit: 0, modulePreload: { polyfill: false }, chunkSizeWarningLimit: 1200 },
  // For work on the pages: `npm run dev` beside an `ocopea up` at its usual address.
  server: { proxy: { '/api': { target: process.env['OCOPEA_URL'] ?? 'http://127.0.0.1:8700', changeOrigin: false } } },
})
