// The marks that the report draws with; esbuild leaves out whatever these do not use.
export {areaY, cell, dot, line, link, plot, ruleX, ruleY, text} from "@observablehq/plot";
