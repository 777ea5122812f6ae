"""Names of the fields that tools store and plots read.

``cfm.tl`` writes them and ``cfm.pl`` reads them; neither imports the other.
"""

from __future__ import annotations

#: ``uns[key][PARAMS]`` records how a result was made: arguments, model, sha256, vocabulary share.
PARAMS = "params"

#: Prefix of embeddings in ``obsm``, scanpy's convention.
EMBEDDING_PREFIX = "X_"

#: Default ``key_added`` of :func:`cfm.tl.predict_virus`; the call itself is ``obs[key]``.
VIRUS_KEY = "predicted_virus"
#: ``obs[key + RESPONSE]``: kind of response; ``obsm[key + RESPONSE_PROBABILITIES]``: of each kind.
RESPONSE = "_response"
RESPONSE_PROBABILITIES = "_response_proba"
#: ``obs[key + INFECTED]``: probability of an infection.
INFECTED = "_infected"
#: ``obs[key + SUPPORT]``: share of such answers that were right in studies left out of training.
SUPPORT_SUFFIX = "_support"
#: ``obsm[key + PROBABILITIES]``: DataFrame, profiles by viruses, given an infection.
PROBABILITIES = "_proba"
SET_SEPARATOR = "|"
#: Tables in ``uns[VIRUS_KEY]``.
SUPPORT = "support"
MATCHES = "matches"

#: Kinds of response that have a meaning of their own.
NO_RESPONSE = "none"
VIRAL = "viral"
#: Answers that are not viruses: no response, a response of another kind, a virus that the data do
#: not name.
UNINFECTED = "uninfected"
NOT_VIRAL = "not viral"
UNRESOLVED = "unresolved"

#: ``uns[CONTRASTS]`` of the AnnData made by :func:`cfm.pp.contrasts`.
CONTRASTS = "contrasts"
#: ``layers[MEAN_COUNT]`` there: mean count of a gene in the cases or the controls, the larger.
MEAN_COUNT = "mean_count"
#: ``uns[MAP_GENES]`` of an AnnData that went through :func:`cfm.pp.map_genes`.
MAP_GENES = "map_genes"

#: Default ``key_added`` of :func:`cfm.tl.host_factors`; ``uns[key][RESULTS]`` is its table.
HOST_FACTORS_KEY = "host_factors"
#: Default ``key_added`` of :func:`cfm.tl.screen_drugs`; ``uns[key][RESULTS]`` is its table.
DRUG_SCREEN_KEY = "drug_screen"
#: Default ``key_added`` of :func:`cfm.tl.search_signatures`: tables :data:`RESULTS` and
#: :data:`EVIDENCE` in ``uns[key]``.
SIGNATURE_SEARCH_KEY = "signature_search"
#: ``uns[key][RESULTS]``: tidy DataFrame of a tool that ranks genes or compounds.
RESULTS = "results"

#: Default ``key_added`` of :func:`cfm.tl.gene_programs`: ``uns[key]``, ``varm[key]`` and
#: ``obsm[EMBEDDING_PREFIX + key]``.
GENE_PROGRAMS_KEY = "gene_programs"
#: Tables in ``uns[GENE_PROGRAMS_KEY]``.
PROGRAMS = "programs"
PROGRAM_GENES = "genes"
PROGRAM_EDGES = "edges"
ENRICHMENT = "enrichment"

#: ``var[GENE_LENGTH]``: base pairs, as used by :func:`cfm.pp.tpm`.
GENE_LENGTH = "gene_length"

#: Default ``key_added`` of :func:`cfm.tl.probe`: ``uns[key]``, ``obs[key]``, and the parts below.
PROBE_KEY = "probe"
#: Default ``key_added`` of :func:`cfm.tl.probe_drugs`; ``uns[key][RESULTS]`` is its table.
PROBE_DRUGS_KEY = "probe_drugs"
#: ``uns[key][GENES]``: names of the genes of ``obsm[key]`` (:func:`cfm.tl.embed` with
#: ``level="gene"`` and ``output=``), or the table of :func:`cfm.tl.probe` by gene.
GENES = "genes"
#: ``uns[key][COMPARISONS]``: paired differences between representations.
COMPARISONS = "comparisons"
#: ``obs[key + FOLD]``: fold in which an observation was predicted, -1 where it was left out.
FOLD = "_fold"
#: ``obs[key + RISK_GROUP]``: "low" or "high" predicted risk (survival).
RISK_GROUP = "_risk_group"
LOW_RISK, HIGH_RISK = "low", "high"
#: ``obsm[key + PREDICTIONS]``: DataFrame, observations by methods, or by targets.
PREDICTIONS = "_predictions"
#: ``obsm[key + METHOD_PROBABILITIES]``: DataFrame, observations by ``"representation|head|class"``.
METHOD_PROBABILITIES = "_method_proba"
#: ``representation`` of what plain expression and no features at all give.
PLAIN_EXPRESSION, NO_FEATURES = "expression PCA", "none"
#: ``target`` of the mean over several targets.
MEAN_TARGET = "mean over targets"

#: ``uns[SIMULATION]`` of the AnnData made by :func:`cfm.tl.simulate_perturbation`.
SIMULATION = "simulation"
#: Of :class:`cfm.models.CellVQ`: ``obs[CODE_BEFORE]``, ``obs[CODE_AFTER]``, and
#: ``uns[SIMULATION][CODE_TRANSITIONS]``: DataFrame, how many cells move from which code to which.
CODE_BEFORE, CODE_AFTER = "cell_code_before", "cell_code_after"
CODE_TRANSITIONS = "code_transitions"
#: ``uns[SIMULATION][LEARNED_FROM]``: DataFrame, what a baseline took its effect from, per group.
LEARNED_FROM = "learned_from"
#: ``obs[PERTURBATION]``: what was simulated, where no column was named for it.
PERTURBATION = "perturbation"
#: ``obs[SIMULATED_FROM]``: name of the observation that a simulated one started from.
SIMULATED_FROM = "simulated_from"
#: ``obs[SIMULATED_BY]``: the model or baseline.
SIMULATED_BY = "simulated_by"
#: ``var[SIMULATED]``: whether a gene was predicted (else it is as in the source).
SIMULATED = "simulated"
#: Between the parts of a combination, as in "A+B".
COMBINED = "+"
#: Baselines that :func:`cfm.tl.simulate_perturbation` takes as ``model=``.
BASELINES = ("control", "mean_shift", "additive", "nearest", "linear")

#: Columns of the table of :func:`cfm.tl.evaluate_perturbation`.
SCORE_COLUMNS = (
    "group",
    "perturbation",
    "metric",
    "method",
    "value",
    "higher_is_better",
    "n_real",
    "n_simulated",
)
#: Its ``method`` for half of the real perturbed cells against the other half.
CEILING = "ceiling"

#: ``obs[N_CELLS]`` and ``obs[N_CELLS_USED]`` of its donors: cells, and cells in a draw.
N_CELLS, N_CELLS_USED = "n_cells", "n_cells_used"
#: ``obs[key + SPREAD]``: root mean squared distance of single draws from their mean.
SPREAD = "_spread"
#: ``obs[key + UNKNOWN_SHARE]``: share of cells that lie outside of the model's reference.
UNKNOWN_SHARE = "_unknown"
#: ``uns[key][VARYING]``: DataFrame of ``obs`` columns that vary within donors.
VARYING = "varying"

#: ``obs[key + CONFIDENCE]``: how sure an answer is, of :func:`cfm.tl.map_reference` and
#: :func:`cfm.tl.predict_properties`.
CONFIDENCE = "_confidence"
#: Default ``key_added`` of :func:`cfm.tl.map_reference`: ``obs[key]``, ``obs[key + CONFIDENCE]``,
#: and tables in ``uns[key]``.
MAP_REFERENCE_KEY = "map_reference"
NEIGHBOURS, EVIDENCE = "neighbours", "evidence"
#: Answer for what lies farther from the training data or reference than they lie from each other.
UNKNOWN = "unknown"

#: Default ``key_added`` of :func:`cfm.tl.cell_importance`: ``obs[key]``, and its table
#: ``uns[key][IMPORTANCE_GROUPS]``.
CELL_IMPORTANCE_KEY = "cell_importance"
IMPORTANCE_GROUPS = "groups"

#: Default ``key_added`` of :func:`cfm.tl.cell_codes`: ``obs[key]``, ``obs[key + SIMILARITY]``,
#: ``obs[key + MARGIN]``, and tables in ``uns[key]``.
CELL_CODE_KEY = "cell_code"
SIMILARITY, MARGIN = "_similarity", "_margin"
#: Tables in ``uns[CELL_CODE_KEY]``; its neighbouring codes are under :data:`NEIGHBOURS`.
CODES, MARKERS = "codes", "markers"
#: ``obs[key + GROUP]``: codes merged into groups, with ``n_groups``.
GROUP = "_group"
#: Further tables there: vectors of the codes, what annotations and codes have in common, and which
#: codes a reference has.
VECTORS, ANNOTATIONS, REFERENCE = "vectors", "annotations", "reference"
#: Columns of :data:`CODES`, after the name of an annotation.
LABELLED, MAJORITY, PURITY, ENTROPY, CODE_ENRICHMENT = (
    "_labelled", "_majority", "_purity", "_entropy", "_enrichment",
)  # fmt: skip

#: Default ``key_added`` of :func:`cfm.tl.predict_properties`, a prefix: ``obs[key + name]``,
#: ``obs[key + name + CONFIDENCE]`` and ``obsm[key + name + PROBABILITIES]``.
PROPERTY_PREFIX = "predicted_"

#: Default ``key_added`` of :func:`cfm.tl.knowledge_graph`: tables in ``uns[key]``.
KNOWLEDGE_GRAPH_KEY = "knowledge_graph"
GRAPH_NODES, GRAPH_EDGES = "nodes", "edges"
